// Says that a page no longer follows, while its stream can't be connected. Everything else that a
// page does is htmx's.
document.addEventListener("htmx:sse:error", () => document.body.classList.add("stale"));
document.addEventListener("htmx:sse:after:connection", () => document.body.classList.remove("stale"));
