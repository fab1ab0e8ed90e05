// The light page: once the whole one is there it takes this one's place, but not under anybody's hand.

const OFTEN = 500, SELDOM = 5000, KINDS = ["pointerdown", "keydown", "wheel", "drop", "change"];
const says = document.getElementById("rest"), button = document.getElementById("show-rest");
const viewer = document.getElementById("viewer");
let touched = false;

function watch(where) {
  for (const kind of KINDS) where.addEventListener(kind, () => { touched = true; }, { capture: true, passive: true });
}
watch(window);
watch(viewer.contentWindow);
viewer.addEventListener("load", () => watch(viewer.contentWindow));

const change = () => location.reload(); // the address names the study in view
button.addEventListener("click", change);

/** Ask how far the page is; asking also keeps the session's files, as an open tab does. */
(async function poll() {
  let pause = OFTEN;
  try {
    const { whole, problem } = await (await fetch("/state/page", { cache: "no-store" })).json();
    if (whole && !touched) return change();
    if (whole) says.textContent = "Findings, header, circuits and help are there.";
    if (problem) says.textContent = problem;
    button.hidden = !whole;
    if (whole || problem) pause = SELDOM;
  } catch { /* no answer: the worklist says so */ }
  setTimeout(poll, pause);
})();
