// Stored values to grey levels, in the order of PS3.4 N.2: modality LUT (PS3.3 C.11.1), VOI LUT
// or window (C.11.2), then the presentation: inversion for MONOCHROME1 (C.7.6.3.1.2). All 65,536
// possible values go through once; what is drawn looks them up. Presentation LUT Shape (C.11.6)
// is not read: in an image it only repeats what MONOCHROME1 says (C.8.11.3.1.2).

export const VALUES = 1 << 16;

/** Stored value of a 16-bit cell: two's complement where signed. */
export function storedOf(cell, signed) {
  return signed && cell >= 0x8000 ? cell - VALUES : cell;
}

/** Value after the modality LUT, or after slope and intercept. */
export function modalityOf(stored, display) {
  const lut = display.modality_lut;
  return lut ? look(lut, stored) : stored * display.slope + display.intercept;
}

function look(lut, value) {
  const index = Math.min(Math.max(Math.round(value) - lut.first, 0), lut.entries.length - 1);
  return lut.entries[index];
}

/** A function from values of the modality LUT to [0, 1] by a window (C.11.2.1.2, C.11.2.1.3). */
export function windowFunction({ center, width, function: kind }) {
  if (kind === "SIGMOID") return (x) => 1 / (1 + Math.exp((-4 * (x - center)) / width));
  const half = kind === "LINEAR" ? 0.5 : 0;
  const middle = center - half;
  const span = width - 2 * half;
  if (span <= 0) return (x) => (x > middle ? 1 : 0); // LINEAR of width 1 is a threshold
  return (x) => Math.min(Math.max((x - middle) / span + 0.5, 0), 1);
}

/**
 * A function from values of the modality LUT to [0, 1] by a VOI LUT (C.11.2.1.1). With a center and
 * a width its inputs are shifted and stretched as a window's would be: its curve stays.
 */
export function lutFunction({ lut, center, width }) {
  const most = 2 ** lut.bits - 1;
  if (width === undefined) return (x) => Math.min(look(lut, x) / most, 1);
  const own = windowOf({ lut });
  return (x) => Math.min(look(lut, own.center + ((x - center) * own.width) / width) / most, 1);
}

/**
 * Grey level 0..255 of every 16-bit cell.
 * voi: {lut}, {lut, center, width} or {center, width, function}. inverted: MONOCHROME1, or the user's wish, not both.
 */
export function greyTable(display, voi, signed, inverted) {
  const shown = voi.lut ? lutFunction(voi) : windowFunction(voi);
  const table = new Uint8Array(VALUES);
  const [low, high] = display.padding ?? [1, 0];
  for (let cell = 0; cell < VALUES; cell++) {
    const stored = storedOf(cell, signed);
    if (stored >= low && stored <= high) continue; // padding is black (C.7.5.1.1.2)
    const level = shown(modalityOf(stored, display));
    table[cell] = Math.round(255 * (inverted ? 1 - level : level));
  }
  return table;
}

/** The window that shows lowest and highest stored value as black and white. */
export function spanning(display, low, high) {
  const ends = [modalityOf(low, display), modalityOf(high, display)].sort((a, b) => a - b);
  return exact(ends[0], ends[1]);
}

function exact(low, high) {
  return { center: (low + high) / 2, width: Math.max(high - low, 1e-6), function: "LINEAR_EXACT" };
}

/** The window between two quantiles of the values present, padding apart. */
export function betweenQuantiles(display, cells, signed, from, to) {
  const counts = new Uint32Array(VALUES);
  for (let i = 0; i < cells.length; i++) counts[cells[i]]++;
  const [low, high] = display.padding ?? [1, 0];
  const present = [];
  let total = 0;
  for (let cell = 0; cell < VALUES; cell++) {
    const stored = storedOf(cell, signed);
    if (!counts[cell] || (stored >= low && stored <= high)) continue;
    present.push([modalityOf(stored, display), counts[cell]]);
    total += counts[cell];
  }
  if (!present.length) return exact(0, 1);
  present.sort((a, b) => a[0] - b[0]);
  const at = (share) => {
    let seen = 0;
    for (const [value, count] of present) {
      seen += count;
      if (seen >= share * total) return value;
    }
    return present.at(-1)[0];
  };
  return exact(at(from), at(to));
}

/** What can be chosen for a frame: the file's VOI LUTs and windows in its order, then ours. */
export function presets(display, range, cells, signed) {
  const named = (kind, number, explanation) =>
    explanation ? `${kind} ${number}: ${explanation.toLowerCase()}` : `${kind} ${number} of the file`;
  const luts = display.voi_luts.map((lut, i) => ({
    name: named("VOI LUT", i + 1, lut.explanation),
    voi: { lut },
  }));
  const windows = display.windows.map((w, i) => ({
    name: named("Window", i + 1, w.explanation),
    voi: { center: w.center, width: w.width, function: w.function },
  }));
  let quantiles;
  return [
    ...luts,
    ...windows,
    { name: "Full range", voi: spanning(display, ...range) },
    {
      name: "Auto (1 to 99 %)",
      get voi() {
        quantiles ??= betweenQuantiles(display, cells, signed, 0.01, 0.99);
        return quantiles;
      },
    },
  ];
}

/** The window that a drag starts from where a VOI LUT is shown: the LUT's inputs. */
export function windowOf(voi) {
  if (!voi.lut || voi.width !== undefined) return { ...voi };
  return exact(voi.lut.first, voi.lut.first + voi.lut.entries.length - 1);
}
