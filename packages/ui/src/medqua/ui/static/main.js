// Gradio makes the page's parts after its modules run: wait for them, then begin.

const NEEDED = ["#files", "#middle", "#studies", "#who", "iframe#viewer", "#opened textarea, #opened input"];

(function begin() {
  if (NEEDED.every((selector) => document.querySelector(selector))) import("./worklist.js");
  else setTimeout(begin, 30);
})();
