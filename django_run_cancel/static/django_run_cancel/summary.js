/* Keeps the summary on the page of a run or a cancellation up to date while something happens. */
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const summary = document.getElementById("run-cancel-summary");

  async function fetchSummary() {
    try {
      const response = await fetch(summary.dataset.url, { cache: "no-store" });
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      // None on the page that asks to log in.
      return page.getElementById(summary.id);
    } catch {
      return null;
    }
  }

  // Changes what differs and leaves the rest, which may have the focus or be selected.
  function update(old, fresh) {
    if (old.isEqualNode(fresh)) return;
    if (old.nodeType === Node.TEXT_NODE) {
      old.data = fresh.data;
      return;
    }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) old.setAttribute(name, value);
    const before = [...old.childNodes];
    const after = [...fresh.childNodes];
    const isAlike =
      before.length === after.length && before.every((node, i) => node.nodeName === after[i].nodeName);
    if (isAlike) before.forEach((node, i) => update(node, after[i]));
    else old.replaceChildren(...after);
  }

  async function refresh() {
    if (!document.hidden) {
      const fresh = await fetchSummary();
      if (fresh) update(summary, fresh);
      tell(Boolean(fresh));
    }
    schedule();
  }

  function tell(isUpToDate) {
    summary.querySelector(".run-cancel-outdated").hidden = isUpToDate;
    summary.querySelector(".run-cancel-reload").hidden = isUpToDate;
  }

  function schedule() {
    const seconds = Number(summary.dataset.seconds);
    if (seconds) setTimeout(refresh, seconds * 1000);
  }

  if (summary) {
    tell(true);
    schedule();
  }
});
