// What a page does beside htmx: it says when it no longer follows; it connects again where htmx
// doesn't, which is at its first connection, and at one on which nothing comes any more; and it
// says which child a bar of a timeline stands for.

"use strict";

// Milliseconds between two attempts. The rest of them are htmx's, with the same limit (base.html).
const FIRST = 500, LONGEST = 5_000;

// Milliseconds after which a stream is dead: the server ends each after 20 seconds.
const SILENT = 45_000;

let failed = 0, deadline = 0;

function isLive(element) {
  return element?.id === "live";
}

function say(status) {
  document.body.classList.add("stale");
  document.body.classList.toggle("refused", status >= 400 && status < 500);
}

function again(main, status) {
  say(status);
  const wait = Math.min(FIRST * 2 ** failed++, LONGEST) * (0.7 + 0.6 * Math.random());
  setTimeout(() => htmx.trigger(main, "follow"), wait);
}

document.addEventListener("htmx:before:response", (event) => {
  const { sourceElement: from, response } = event.detail.ctx;
  if (isLive(from)) {
    const kind = response.headers.get("Content-Type") ?? "";
    if (response.raw.ok && kind.includes("text/event-stream")) return;
    event.preventDefault(); // a page that says what is wrong is no part of this one
    again(from, response.status);
  } else if (!response.raw.ok) {
    event.preventDefault();
    location.assign(from.href);
  }
});

document.addEventListener("htmx:error", ({ detail }) => {
  if (isLive(detail.ctx?.sourceElement)) again(detail.ctx.sourceElement, 0);
});

document.addEventListener("htmx:sse:error", ({ detail }) => say(detail.status ?? 0));

document.addEventListener("htmx:sse:after:connection", ({ target: main }) => {
  failed = 0;
  document.body.classList.remove("stale", "refused");
  clearTimeout(deadline);
  deadline = setTimeout(() => {
    const reader = main._htmx?.sse?.reader; // none while the page is in the background
    if (reader) say(0);
    reader?.cancel();
  }, SILENT);
});

for (const kind of ["pointerover", "focusin"]) {
  document.addEventListener(kind, ({ target }) => {
    const bar = target.closest?.(".timeline a"), told = document.getElementById("told");
    if (bar && told) told.textContent = bar.getAttribute("aria-label");
  });
}
