// The page can be read without this: it only makes the buttons that copy a script.

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedByHand(text); // a page that came from a file may be refused the clipboard
  }
}

function copiedByHand(text) {
  const field = document.createElement("textarea");
  const focused = document.activeElement;
  field.value = text;
  field.readOnly = true;
  document.body.append(field);
  field.select();
  try {
    return document.execCommand("copy");
  } finally {
    field.remove();
    focused?.focus();
  }
}

for (const button of document.querySelectorAll("button[data-copies]")) {
  const said = button.nextElementSibling;
  button.hidden = false;
  button.addEventListener("click", async () => {
    const script = document.getElementById(button.dataset.copies);
    const done = await copied(script.textContent);
    said.textContent = done ? "Copied." : "Could not copy: open the script and select its text.";
  });
}
