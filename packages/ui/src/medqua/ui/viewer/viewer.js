// The viewer's state and its picture: a study, a frame, a window, a pose, and what follows.

import { Canvas2DRenderer } from "./canvas2d.js";
import { distance, edgeLetters, fittingScale, matrixOf, spacingSentence, toCanvas, toImage, zoomed } from "./geometry.js";
import { greyTable, modalityOf, presets, storedOf, windowOf } from "./grey.js";
import { Overlay } from "./overlay.js";
import { WebGLRenderer } from "./webgl.js";

const SVG = "http://www.w3.org/2000/svg";
const START = { scale: 1, turns: 0, flipped: false, panX: 0, panY: 0 };
const LARGEST = 40;
const ROUGH = new Intl.NumberFormat("en", { maximumFractionDigits: 1, useGrouping: false });
const FINE = new Intl.NumberFormat("en", { maximumSignificantDigits: 5, useGrouping: false });

export class Viewer {
  /** parts: elements by id; kind: "2d" to do without WebGL2; changed: called after a change. */
  constructor(parts, kind, changed) {
    this.parts = parts;
    this.changed = changed;
    this.renderer = kind === "2d" ? null : WebGLRenderer.create(parts.canvas, kind === "webgl");
    this.renderer ??= new Canvas2DRenderer(parts.canvas);
    this.annotated = true;
    this.overlay = new Overlay(() => this.schedule());
    this.clear();
    new ResizeObserver(() => this.resize()).observe(parts.stage);
    parts.canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      this.change2d();
    });
  }

  /** Show nothing but a sentence. */
  clear(sentence = "") {
    this.study = null;
    this.parts.canvas.hidden = this.parts.overlay.hidden = true;
    this.overlay.clear();
    this.parts.notice.textContent = sentence;
    this.rulers = [];
    this.pointer = null;
    this.schedule();
  }

  /** Show a study, as it was last seen where that is known. */
  show(study, seen = null) {
    this.study = study;
    this.identity = study.identity.lines;
    if (!this.renderer.fits(study.columns, study.rows)) this.change2d();
    this.rulers = [];
    this.pointer = null;
    this.loaded = -1;
    this.frame = 0;
    this.measure();
    this.reset();
    if (seen) this.restore(seen);
    this.parts.canvas.hidden = false;
    this.parts.notice.textContent = "";
    this.render();
  }

  /** Go on without WebGL2: a canvas has one context for life, so it is a new one. */
  change2d() {
    const canvas = this.parts.canvas.cloneNode();
    this.parts.canvas.replaceWith(canvas);
    this.parts.canvas = canvas;
    this.renderer = new Canvas2DRenderer(canvas);
    this.loaded = -1;
    if (this.study) this.render();
  }

  get display() {
    return this.study.displays[Math.min(this.frame, this.study.displays.length - 1)];
  }

  get cells() {
    const size = this.study.rows * this.study.columns;
    return this.study.cells.subarray(this.frame * size, (this.frame + 1) * size);
  }

  /** As opened: the file's first VOI LUT or window, the whole image. */
  reset() {
    this.inverted = false;
    this.pose = { ...START };
    this.fitted = true;
    this.choices = presets(this.display, this.study.range, this.study.cells, this.study.signed);
    this.choose(0);
  }

  choose(number) {
    this.choice = number;
    this.voi = this.choices[number].voi;
    this.dirty();
  }

  setWindow(center, width, kind = this.voi.function) {
    const least = kind === "LINEAR" ? 1 : 1e-6;
    const { lut } = this.voi;
    this.choice = -1;
    this.voi = { ...(lut ? { lut } : { function: kind }), center, width: Math.max(width, least) };
    this.dirty();
  }

  /** Move the window by shares of the range of values present. */
  dragWindow(dx, dy) {
    const from = windowOf(this.voi);
    const [low, high] = this.study.range.map((v) => modalityOf(v, this.display));
    const step = Math.max(Math.abs(high - low), 1) / 1000;
    this.setWindow(from.center + dy * step, from.width + dx * step, from.function);
  }

  setFrame(frame) {
    const wanted = Math.min(Math.max(frame, 0), this.study.frames - 1);
    if (wanted === this.frame) return;
    this.frame = wanted;
    if (this.study.displays.length > 1) {
      const [choice, voi] = [this.choice, this.voi];
      this.choices = presets(this.display, this.study.range, this.study.cells, this.study.signed);
      if (choice >= 0) this.choose(Math.min(choice, this.choices.length - 1));
      else this.voi = voi;
    }
    this.dirty();
  }

  invert() {
    this.inverted = !this.inverted;
    this.dirty();
  }

  setPose(change) {
    this.pose = { ...this.pose, ...change };
    this.fitted = false;
    this.schedule();
  }

  pan(dx, dy) {
    this.setPose({ panX: this.pose.panX + dx, panY: this.pose.panY + dy });
  }

  zoom(factor, x = this.parts.canvas.width / 2, y = this.parts.canvas.height / 2) {
    const least = Math.min(this.fitting(), 1) / 4;
    this.setPose(zoomed(this.pose, factor, this.parts.canvas, x, y, least, LARGEST));
  }

  fitting() {
    return fittingScale(this.pose, this.study, this.parts.canvas);
  }

  fit() {
    this.pose = { ...this.pose, panX: 0, panY: 0, scale: this.fitting() };
    this.fitted = true;
    this.schedule();
  }

  oneToOne() {
    this.setPose({ scale: 1, panX: 0, panY: 0 });
  }

  turn(quarters) {
    const { fitted } = this;
    const turns = (this.pose.turns + quarters + 4) & 3;
    const [panX, panY] = [-quarters * this.pose.panY, quarters * this.pose.panX];
    this.setPose({ turns, panX, panY });
    if (fitted) this.fit();
  }

  /** Mirror what is seen, left to right or top to bottom. */
  flip(vertically) {
    const { fitted, pose } = this;
    const turns = ((vertically ? 6 : 4) - pose.turns) & 3; // mirroring turns the other way
    const change = vertically ? { panY: -pose.panY } : { panX: -pose.panX };
    this.setPose({ ...change, flipped: !pose.flipped, turns });
    if (fitted) this.fit();
  }

  /** What is seen, in terms that hold for another picture: of its whole, and of the window it opened with. */
  get view() {
    const [opened, now] = [windowOf(this.choices[0].voi), windowOf(this.voi)];
    const { scale, panX, panY } = this.pose;
    return {
      zoom: this.fitted ? 1 : scale / this.fitting(), x: panX / (scale * this.longest), y: panY / (scale * this.longest),
      level: (now.center - opened.center) / opened.width, width: now.width / opened.width, inverted: this.inverted,
    };
  }

  /** All that the user chose for this study: it comes back with it, on a canvas of any size. */
  get state() {
    const { zoom, x, y } = this.view;
    const { choice, inverted, frame, rulers } = this;
    const { lut, ...shown } = this.voi;
    const voi = choice >= 0 ? null : { ...shown, lut: lut ? this.display.voi_luts.indexOf(lut) : -1 };
    const { turns, flipped } = this.pose;
    return { zoom, x, y, turns, flipped, voi, choice, inverted, frame, rulers };
  }

  restore({ zoom, x, y, turns, flipped, voi, choice, inverted, frame, rulers }) {
    this.setFrame(frame);
    if (choice >= 0 && choice < this.choices.length) this.choose(choice);
    else {
      const { lut, ...shown } = voi;
      this.choice = -1;
      this.voi = lut < 0 ? shown : { ...shown, lut: this.display.voi_luts[lut] };
    }
    this.inverted = inverted;
    this.rulers = rulers.map(({ from, to }) => ({ from, to }));
    this.pose = { ...START, turns, flipped };
    if (zoom === 1 && x === 0 && y === 0) return this.fit();
    const scale = zoom * this.fitting();
    this.setPose({ scale, panX: x * scale * this.longest, panY: y * scale * this.longest });
  }

  /** See this picture as another one is seen. */
  follow({ zoom, x, y, level, width, inverted }) {
    const scale = Math.min(zoom * this.fitting(), LARGEST);
    if (zoom === 1 && x === 0 && y === 0) this.fit();
    else this.setPose({ scale, panX: x * scale * this.longest, panY: y * scale * this.longest });
    const opened = windowOf(this.choices[0].voi);
    this.inverted = inverted;
    if (level === 0 && width === 1) this.choose(0);
    else this.setWindow(opened.center + level * opened.width, width * opened.width, opened.function);
  }

  get longest() {
    return Math.max(this.study.columns, this.study.rows * this.study.aspect);
  }

  resize() {
    this.measure();
    if (!this.study) return;
    if (this.fitted) this.fit();
    this.render(); // at once: a resized canvas is empty until it is drawn
  }

  measure() {
    const { stage, canvas, overlay } = this.parts;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [stage.clientWidth, stage.clientHeight].map((v) => Math.max(1, Math.round(v * ratio)));
    if (canvas.width !== width || canvas.height !== height) {
      [canvas.width, canvas.height] = [width, height];
      [overlay.width, overlay.height] = [width, height];
    }
  }

  dirty() {
    this.shaded = false;
    this.schedule();
  }

  schedule() {
    this.pending ??= requestAnimationFrame(() => this.render());
  }

  /** Draw what is asked for now. */
  render() {
    if (this.pending) cancelAnimationFrame(this.pending);
    this.pending = null;
    if (this.study) {
      if (this.fitted) this.pose = { ...this.pose, panX: 0, panY: 0, scale: this.fitting() };
      if (this.loaded !== this.frame) {
        this.renderer.load(this.cells, this.study.columns, this.study.rows);
        this.loaded = this.frame;
        this.shaded = false;
      }
      if (!this.shaded) {
        const inverted = this.study.inverted !== this.inverted;
        this.renderer.shade(greyTable(this.display, this.voi, this.study.signed, inverted));
        this.shaded = true;
      }
      this.matrix = matrixOf(this.pose, this.study, this.parts.canvas);
      this.renderer.draw(this.matrix, this.pose.scale < 4);
      this.overlay.draw(this.parts.overlay, this.matrix, this.study);
    }
    this.annotate();
    this.changed(this);
  }

  /** Image coordinates of a point of the page, in pixels from the outer corner. */
  imagePoint(event) {
    return toImage(this.matrix, ...this.canvasPoint(event));
  }

  canvasPoint(event) {
    const box = this.parts.stage.getBoundingClientRect();
    const ratio = this.parts.canvas.width / box.width;
    return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
  }

  /** Stored and modality value under a point of the image, or null outside. */
  probe([x, y]) {
    const [column, row] = [Math.floor(x), Math.floor(y)];
    const { columns, rows, signed } = this.study;
    if (column < 0 || row < 0 || column >= columns || row >= rows) return null;
    const stored = storedOf(this.cells[row * columns + column], signed);
    return { column, row, stored, modality: modalityOf(stored, this.display) };
  }

  annotate() {
    const { parts, study } = this;
    const visible = Boolean(study) && this.annotated;
    parts.texts.classList.toggle("hidden", !visible);
    parts.marks.classList.toggle("hidden", !visible);
    if (!visible) return;
    const view = [study.modality, study.body_part, study.view].filter(Boolean).join(" · ");
    const side = { L: "left", R: "right", B: "both sides", U: "unpaired" }[study.laterality];
    const kind = study.colour ? "colour, shown as grey" : study.inverted ? "MONOCHROME1" : "";
    put(parts.about, [
      ...this.identity,
      view,
      `${study.columns} × ${study.rows}, ${study.bits} bits${kind ? `, ${kind}` : ""}`,
      side ? `Laterality: ${side}` : "",
    ]);
    const { voi } = this;
    const shape = voi.function === "SIGMOID" ? " sigmoid" : "";
    put(parts.shown, [
      (voi.lut ? `VOI LUT${voi.lut.explanation ? ` ${voi.lut.explanation}` : ""}` : "")
        + (voi.width === undefined ? "" : `${voi.lut ? ", " : ""}C ${ROUGH.format(voi.center)}  W ${ROUGH.format(voi.width)}${shape}`),
      `${Math.round(this.pose.scale * 100)} %${this.inverted ? ", inverted" : ""}`,
      study.frames > 1 ? `frame ${this.frame + 1} of ${study.frames}` : "",
      study.orientation ? "" : "orientation not stated",
    ]);
    const at = this.pointer && this.probe(this.pointer);
    const unit = this.display.unit ? ` ${this.display.unit}` : "";
    put(parts.probe, at ? [
      `x ${at.column + 1}  y ${at.row + 1}`,
      `stored ${at.stored}  value ${FINE.format(at.modality)}${unit}`,
      this.overlay.at(this.pointer),
    ] : []);
    put(parts.lengths, [spacingSentence(study.spacing, study.modality)]);
    const letters = edgeLetters(study.orientation, this.pose);
    for (const edge of ["top", "bottom", "left", "right"]) {
      put(parts[edge], [letters ? letters[edge] : ""]);
    }
    parts.marks.replaceChildren(...this.rulers.flatMap((ruler) => this.drawn(ruler)));
  }

  drawn({ from, to }) {
    const ratio = window.devicePixelRatio || 1;
    const ends = [from, to].map((p) => toCanvas(this.matrix, ...p).map((v) => v / ratio));
    const { value, unit } = distance(from, to, this.study.spacing, this.study.aspect);
    const line = (name) => element("line", { x1: ends[0][0], y1: ends[0][1], x2: ends[1][0], y2: ends[1][1], class: name });
    const text = element("text", { x: ends[1][0] + 8, y: ends[1][1] - 6 });
    text.textContent = `${value.toFixed(1)} ${unit}`;
    return [line("under"), line("over"), text];
  }
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function put(part, lines) {
  const text = lines.filter(Boolean).join("\n");
  if (part.textContent !== text) part.textContent = text;
}
