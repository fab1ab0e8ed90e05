// Findings and header of the study in view. What arrives for another study is thrown away.

const part = (id) => document.getElementById(id);
const quiet = (sentence) => Object.assign(document.createElement("p"), { className: "quiet", textContent: sentence });
const rule = document.head.appendChild(document.createElement("style"));

/** Hide all that Gradio shows of another study: its answers come when they come. */
function showOnly(name) {
  rule.textContent = `[data-study]:not([data-study="${name}"]) { display: none !important; }`;
}

export class Panel {
  /** ask(path, options): an answer; tell(message): to the viewers. */
  constructor(ask, tell) {
    Object.assign(this, { ask, tell, study: "", asked: {}, revealed: false, rows: 0, kept: {} });
    document.addEventListener("input", (event) => event.target.closest?.("#look") && this.study && this.header());
    document.addEventListener("click", (event) => event.target.closest?.("#reveal") && this.study && this.reveal());
    this.show("");
    new MutationObserver(() => this.remade()).observe(document.body, { childList: true, subtree: true });
  }

  /** Show one study's, from now on; at first nothing. */
  show(name) {
    this.study = name;
    Object.assign(this, { revealed: false, rows: 0 });
    for (const request of Object.values(this.asked)) request.abort();
    showOnly(name);
    this.put("reading", () => quiet(name ? "Findings follow …" : "Open a study."));
    this.put("tags", () => quiet(name ? "The header follows …" : "Open a study."));
    this.says("");
    this.button();
    if (name) Promise.all([this.findings(), this.header()]);
  }

  /** Fill a box with what `make` makes for the study in view. */
  put(id, make) {
    this.kept[id] = make;
    const box = part(id);
    if (!box) return; // the light page shows pictures alone
    box.dataset.study = this.study;
    box.replaceChildren(make());
  }

  /** Gradio makes the parts of a tab anew when it is first opened: fill them again. */
  remade() {
    const made = Object.keys(this.kept).filter((id) => part(id) && part(id).dataset.study !== this.study);
    for (const id of made) this.put(id, this.kept[id]);
    if (made.length) this.button();
  }

  button() {
    const button = part("reveal");
    if (!button) return;
    button.disabled = !this.rows;
    button.textContent = this.revealed ? "Hide personal data" : "Reveal personal data";
  }

  /** HTML of the server's own, in which all values are escaped. */
  putHtml(id, html) {
    this.put(id, () => document.createRange().createContextualFragment(html));
  }

  says(sentence) {
    if (part("header-says")) part("header-says").textContent = sentence;
  }

  /** Ask about the study in view; null if another one is in view by then, or asked again. */
  async about(kind, path, options = {}) {
    this.asked[kind]?.abort();
    const mine = (this.asked[kind] = new AbortController());
    const name = this.study;
    try {
      const answer = await this.ask(`/studies/${name}/${path}`, { ...options, signal: mine.signal });
      const told = await answer.json();
      if (mine.signal.aborted || name !== this.study) return null;
      if (answer.ok && told.study !== name) throw new Error("The server answered about another study.");
      return told;
    } catch (error) {
      if (mine.signal.aborted || name !== this.study) return null;
      return { error: error instanceof TypeError ? "The viewer's server does not answer." : error.message };
    }
  }

  async findings() {
    const told = await this.about("findings", "findings");
    if (told?.error) this.put("reading", () => quiet(told.error));
    if (!told || told.error) return;
    this.putHtml("reading", told.html);
    if (told.overlay) this.tell({ overlay: told.overlay });
  }

  async occlusion() {
    const told = await this.about("occlusion", "occlusion", { method: "POST" });
    if (told?.overlay) this.tell({ overlay: told.overlay });
  }

  async header() {
    const look = part("look")?.querySelector("input").value ?? "";
    this.showHeader(await this.about("header", `header?look=${encodeURIComponent(look)}`));
  }

  async reveal() {
    const look = part("look")?.querySelector("input").value ?? "";
    const path = `${this.revealed ? "hide" : "reveal"}?look=${encodeURIComponent(look)}`;
    this.showHeader(await this.about("header", path, { method: "POST" }));
  }

  showHeader(told) {
    if (!told) return;
    this.says(told.error ?? "");
    if (told.error) return;
    Object.assign(this, { revealed: told.revealed, rows: told.rows });
    this.putHtml("tags", told.html);
    this.button();
    this.tell({ identity: told.identity });
  }
}
