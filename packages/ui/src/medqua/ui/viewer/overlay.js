// What the model did, over the picture: the tokens of each adapter, or what covering a region does.
//
// A map is a grid laid over the model's image, a square that shows the file shrunk, padded or cut.
// `placement` says where: model column u shows stored column x + (u - left) * scale_x.

const MAPS = {
  cividis: "00224e002656002a5f002d68003070083370163770203a6f273e6e2e416d34456c3a486c3f4c6c444f6c49536c4e566c535a6d575d6d5c616e60646f656870696b716d6f727272747676767a7a787e7d788381798885788d8878928c789690779b9476a09875a59c74aaa073afa471b5a86fbaac6dbfb06bc4b468c9b965cfbd62d4c15fdac65bdfca57e5cf52ead34cf0d846f6dd3ffce236fee838",
  viridis: "44015446085c471063481769481d6f482475472a7a46307e453781433d844142873f48893d4e8a3a538b38598c355e8d33638d31688e2e6d8e2c718e2a768e297b8e27808e25848e23898e218e8d20928c1f978b1e9c891fa18821a58524aa8328ae802eb37c35b7793dbc7446c06f50c46a5ac86465cb5e70cf577cd25089d54895d840a2da37b0dd2fbddf26cae11fd8e219e5e419f1e51dfde725",
};
const TABLES = Object.fromEntries(Object.entries(MAPS).map(([name, text]) => [name, text.match(/.{6}/g)
  .map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)))]));

/** Colour [r, g, b] of a share of a map, 0 to 1. */
export function colourOf(map, share) {
  const table = TABLES[map];
  const at = Math.min(Math.max(share, 0), 1) * (table.length - 1);
  const low = Math.min(Math.floor(at), table.length - 2);
  return table[low].map((v, i) => Math.round(v + (at - low) * (table[low + 1][i] - v)));
}

const POINTS = new Intl.NumberFormat("en", { maximumFractionDigits: 2, minimumFractionDigits: 2, signDisplay: "exceptZero" });

/** Of an occlusion map, in logits: what is less stays clear (odds changed by less than 28 %); half of the scale at least. */
const LEAST_CHANGE = 0.25, LEAST_SCALE = 1;

export class Overlay {
  /** changed: called when what is drawn changes. */
  constructor(changed) {
    this.changed = changed;
    this.opacity = 0.5;
    this.kind = "off";
    this.layer = -1; // all of them
    this.finding = 0;
    this.cells = document.createElement("canvas");
    this.clear();
  }

  clear() {
    this.data = null;
    this.map = null;
    this.changed();
  }

  /** Take what the server tells of a study; choices that still make sense are kept. */
  set(data) {
    const known = data.occlusion && this.data?.occlusion?.labels.join() === data.occlusion.labels.join();
    this.data = data;
    if (this.layer >= data.layers.length) this.layer = -1;
    if (data.occlusion && !known) this.finding = data.occlusion.first ?? 0;
    if (!data.layers.length && this.kind !== "occlusion") this.kind = "off";
    this.choose({});
  }

  /** Change kind, layer, finding or opacity. */
  choose(change) {
    Object.assign(this, change);
    this.map = this.data && this.kind !== "off" ? this.made() : null;
    if (this.map) this.paint();
    this.changed();
  }

  /** Whether a map is asked for that the server has not computed yet. */
  get wanting() {
    return Boolean(this.data) && this.kind === "occlusion" && !this.data.occlusion;
  }

  /** The map asked for: values, and how they are shown; null where there is none. */
  made() {
    const { layers, occlusion } = this.data;
    if (this.kind === "occlusion") {
      if (!occlusion) return null;
      const values = occlusion.change[this.finding];
      const largest = Math.max(...values.flat().map(Math.abs));
      const most = Math.max(largest, LEAST_SCALE);
      return {
        values, low: -most, high: most, table: "cividis", fading: true, floor: LEAST_CHANGE,
        title: `${occlusion.labels[this.finding]}: change of the logit when covered`,
        unit: "logits", ends: [POINTS.format(-most), POINTS.format(most)],
        note: largest < LEAST_CHANGE ? `no region matters more than ${LEAST_CHANGE}: none is coloured`
          : `yellow: speaks for it; less than ${LEAST_CHANGE} is clear`,
      };
    }
    const some = this.layer < 0 ? layers : [layers[this.layer]];
    if (!some.length) return null;
    const over = (of) => some[0].gate.map((row, i) => row.map((_, j) => of(some.map((one) => [one.gate[i][j], one.depth[i][j]]))));
    const where = this.layer < 0 ? `${some.length} adapters` : some[0].title;
    if (this.kind === "gate") {
      return {
        values: over((told) => told.reduce((sum, [gate]) => sum + gate, 0) / told.length),
        low: 0, high: 1, table: "cividis", title: `Gate, ${this.layer < 0 ? "mean of " : ""}${where}`,
        unit: "no unit", ends: ["0", "1"], note: "share of the quantum path in a token that is routed",
      };
    }
    const routed = (depth) => depth >= 0;
    if (this.kind === "depth") {
      const most = some.reduce((sum, one) => sum + one.max_depth, 0);
      return {
        values: over((told) => (told.some(([, d]) => routed(d)) ? told.reduce((sum, [, d]) => sum + Math.max(d, 0), 0) : null)),
        low: 0, high: most, table: "viridis", title: `Depth, ${this.layer < 0 ? "sum of " : ""}${where}`,
        unit: "circuit layers", ends: ["0", String(most)], note: "clear: not routed",
      };
    }
    return {
      values: over((told) => told.filter(([, d]) => routed(d)).length || null),
      low: 0, high: some.length, table: "viridis", title: `Routed to the quantum path, ${where}`,
      unit: "adapters", ends: ["0", String(some.length)], note: "clear: not routed",
    };
  }

  /** One pixel a cell. */
  paint() {
    const { values, low, high, table, fading, floor = 0 } = this.map;
    [this.cells.width, this.cells.height] = [values[0].length, values.length];
    const context = this.cells.getContext("2d");
    const image = context.createImageData(this.cells.width, this.cells.height);
    values.flat().forEach((value, i) => {
      if (value === null || Math.abs(value) < floor) return;
      const alpha = fading ? Math.abs(value) / high : 1;
      image.data.set([...colourOf(table, (value - low) / (high - low)), Math.round(255 * alpha)], 4 * i);
    });
    context.putImageData(image, 0, 0);
  }

  /** Draw over a picture under its matrix; nothing is drawn outside of the picture. */
  draw(canvas, matrix, study) {
    const visible = Boolean(this.map) && Boolean(study);
    canvas.hidden = !visible;
    if (!visible) return;
    const context = canvas.getContext("2d");
    const { placement: at, image: [rows, columns] } = this.data;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.save();
    context.setTransform(...matrix);
    context.beginPath();
    context.rect(0, 0, study.columns, study.rows);
    context.clip();
    context.globalAlpha = this.opacity;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.cells, at.x - at.left * at.scale_x, at.y - at.top * at.scale_y,
      columns * at.scale_x, rows * at.scale_y);
    context.restore();
  }

  /** What the map says under a point of the image, in words. */
  at([x, y]) {
    if (!this.map) return "";
    const { placement: p, image: [rows, columns] } = this.data;
    const { values, unit } = this.map;
    const [u, v] = [(x - p.x) / p.scale_x + p.left, (y - p.y) / p.scale_y + p.top];
    const value = values[Math.floor((v / rows) * values.length)]?.[Math.floor((u / columns) * values[0].length)];
    if (value === undefined) return "";
    if (value === null) return "not routed";
    if (this.kind === "gate") return `gate ${value.toFixed(2)}`;
    return this.kind === "occlusion" ? `covered: ${POINTS.format(-value)} ${unit}` : `${value} ${unit}`;
  }
}

/** Connect an overlay to its controls; `ask()` has the server compute what it has not yet. */
export function attachControls(overlay, parts, ask) {
  const { "overlay-kind": kind, "overlay-layer": layer, "overlay-finding": finding, opacity } = parts;
  kind.addEventListener("change", () => {
    overlay.choose({ kind: kind.value });
    if (overlay.wanting) ask();
  });
  layer.addEventListener("change", () => overlay.choose({ layer: Number(layer.value) }));
  finding.addEventListener("change", () => overlay.choose({ finding: Number(finding.value) }));
  opacity.addEventListener("input", () => overlay.choose({ opacity: Number(opacity.value) / 100 }));
}

/** Bring the controls in line with an overlay. */
export function showControls(overlay, parts) {
  const { data, map } = overlay;
  parts.overlaybar.hidden = !data;
  if (!data) return;
  const { "overlay-kind": kind, "overlay-layer": layer, "overlay-finding": finding } = parts;
  for (const option of kind.options) {
    option.disabled = !data.layers.length && !["off", "occlusion"].includes(option.value);
  }
  kind.value = overlay.kind;
  fill(layer, ["All adapters", ...data.layers.map((one) => one.title)], -1);
  layer.value = String(overlay.layer);
  layer.parentElement.hidden = ["off", "occlusion"].includes(overlay.kind);
  fill(finding, data.occlusion?.labels ?? [], 0);
  finding.value = String(overlay.finding);
  finding.parentElement.hidden = overlay.kind !== "occlusion" || !data.occlusion;
  parts.opacity.value = String(Math.round(100 * overlay.opacity));
  parts.opacity.parentElement.hidden = !map;
  parts.scale.hidden = !map;
  const idle = overlay.wanting ? "Covering one region after another …" : "";
  parts["legend-title"].textContent = map?.title ?? idle;
  parts["legend-low"].textContent = map?.ends[0] ?? "";
  parts["legend-high"].textContent = map ? `${map.ends[1]} ${map.unit}` : "";
  parts["legend-note"].textContent = map?.note ?? (overlay.kind === "off" ? "No map is shown." : "");
  if (map) ramp(parts.ramp, map);
}

function fill(select, names, first) {
  if (names.join("\n") === [...select.options].map((o) => o.text).join("\n")) return;
  select.replaceChildren(...names.map((name, i) => new Option(name, String(i + first))));
}

function ramp(canvas, { table, fading }) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, 1);
  for (let i = 0; i < canvas.width; i++) {
    const share = i / (canvas.width - 1);
    const alpha = fading ? Math.abs(2 * share - 1) : 1;
    image.data.set([...colourOf(table, share), Math.round(255 * alpha)], 4 * i);
  }
  for (let y = 0; y < canvas.height; y++) context.putImageData(image, 0, y);
}
