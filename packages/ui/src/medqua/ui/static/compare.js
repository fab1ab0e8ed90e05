// A second viewer beside the first, for another study of the same patient.

export class Comparison {
  constructor(place, ended) {
    Object.assign(this, { place, ended, other: "" });
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
    head.append(stop);
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
