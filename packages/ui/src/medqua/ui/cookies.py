"""The cookies of a browser: its session's secret name."""

from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers

COOKIE = "medqua_session"


def session_cookie(token: str, secure: bool) -> str:
    """Return the header that gives a browser its session."""
    return f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict{'; Secure' if secure else ''}"


def cookie_of(headers: Headers, name: str = COOKIE) -> str | None:
    """Return a cookie that a browser sent."""
    try:
        cookie: SimpleCookie = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return None
    return cookie[name].value if name in cookie else None
