// A second viewer beside the first, for another study of the same patient; both move as one, or each for itself.

export class Comparison {
  constructor(place, ended) {
    Object.assign(this, { place, ended, other: "", together: true });
    window.addEventListener("message", (event) => this.relay(event));
  }

  /** Have one viewer follow what the other says of itself. */
  relay({ origin, source, data }) {
    if (!this.other || !this.together || !data?.view || origin !== location.origin) return;
    const viewers = [...this.place.querySelectorAll("iframe#viewer, #beside iframe")].map((frame) => frame.contentWindow);
    if (!viewers.includes(source)) return;
    for (const viewer of viewers) if (viewer !== source) viewer.postMessage({ follow: data.view }, location.origin);
  }

  /** Show a study of the same patient beside the one that is open, or stop. */
  toggle(study) {
    if (this.other === study.name) return this.end();
    this.end();
    this.other = study.name;
    const first = this.place.querySelector("iframe#viewer");
    const box = document.createElement("section");
    box.id = "beside";
    box.setAttribute("aria-label", "Study to compare with");
    const head = document.createElement("p");
    head.textContent = `${study.file}: the same patient by its header`;
    const stop = document.createElement("button");
    Object.assign(stop, { type: "button", textContent: "Stop comparing" });
    stop.addEventListener("click", () => this.end());
    const [label, linked] = [document.createElement("label"), document.createElement("input")];
    Object.assign(linked, { type: "checkbox", checked: this.together });
    linked.addEventListener("change", () => { this.together = linked.checked; });
    label.append(linked, " Move and window together");
    head.append(label, stop);
    const frame = document.createElement("iframe");
    Object.assign(frame, { title: "Second image viewer", src: `/viewer/index.html?study=${study.name}` });
    box.append(head, frame);
    first.parentElement.append(box);
    first.parentElement.classList.add("two");
  }

  end() {
    if (!this.other) return;
    this.other = "";
    const box = this.place.querySelector("#beside");
    box?.parentElement.classList.remove("two");
    box?.remove();
    this.ended();
  }
}
