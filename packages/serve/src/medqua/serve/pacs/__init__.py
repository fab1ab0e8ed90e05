"""To and from the hospital's archive, and what waits on disk until it is delivered."""
