/* Copies the new API key. Without a script there is no button, and the key is selected by hand. */
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const button = document.querySelector(".run-cancel-copy");
  const field = document.getElementById("new-api-key");
  const told = document.querySelector(".run-cancel-copied");
  if (!button) return;

  async function copy() {
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
      return true;
    } catch {
      // Browsers have a clipboard for HTTPS and localhost only; this works for other hosts.
      return document.execCommand("copy");
    }
  }

  button.hidden = false;
  button.addEventListener("click", async () => {
    told.textContent = (await copy()) ? button.dataset.copied : button.dataset.failed;
  });
});
