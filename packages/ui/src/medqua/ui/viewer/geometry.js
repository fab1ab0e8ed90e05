// Where a pixel of the image is on the screen, and what that means in the patient.
//
// A pose is {scale, turns, flipped, panX, panY}: device pixels per image column, quarter turns
// clockwise, mirrored left to right before turning, and the image's centre relative to the
// canvas's. A pixel is `aspect` times as high as wide. Image coordinates have (0, 0) at the
// outer corner of the first pixel; pixel i covers i to i + 1.

/** Matrix [a, b, c, d, e, f] from image to canvas: x' = a x + c y + e, y' = b x + d y + f. */
export function matrixOf(pose, image, canvas) {
  const sx = (pose.flipped ? -1 : 1) * pose.scale;
  const sy = pose.scale * image.aspect;
  const [cos, sin] = [[1, 0], [0, 1], [-1, 0], [0, -1]][pose.turns & 3];
  const [a, b, c, d] = [cos * sx, sin * sx, -sin * sy, cos * sy];
  let e = canvas.width / 2 + pose.panX - (a * image.columns + c * image.rows) / 2;
  let f = canvas.height / 2 + pose.panY - (b * image.columns + d * image.rows) / 2;
  if (pose.scale === 1 && image.aspect === 1) [e, f] = [Math.round(e), Math.round(f)];
  return [a, b, c, d, e, f];
}

export function toCanvas([a, b, c, d, e, f], x, y) {
  return [a * x + c * y + e, b * x + d * y + f];
}

export function toImage([a, b, c, d, e, f], x, y) {
  const det = a * d - b * c;
  return [(d * (x - e) - c * (y - f)) / det, (a * (y - f) - b * (x - e)) / det];
}

/** The scale at which the whole image is seen. */
export function fittingScale(pose, image, canvas) {
  const turned = pose.turns & 1;
  const wide = turned ? image.rows * image.aspect : image.columns;
  const high = turned ? image.columns : image.rows * image.aspect;
  return Math.min(canvas.width / wide, canvas.height / high);
}

/** Pose after zooming by a factor about a point of the canvas, which stays where it is. */
export function zoomed(pose, factor, canvas, x, y, least, most) {
  const scale = Math.min(Math.max(pose.scale * factor, least), most);
  const f = scale / pose.scale;
  const [dx, dy] = [x - canvas.width / 2, y - canvas.height / 2];
  return { ...pose, scale, panX: dx - f * (dx - pose.panX), panY: dy - f * (dy - pose.panY) };
}

const OPPOSITE = { A: "P", P: "A", L: "R", R: "L", H: "F", F: "H" };

function opposite(letters) {
  return [...letters].map((letter) => OPPOSITE[letter]).join("");
}

/** Letters at the edges {left, right, top, bottom} of the canvas, or null where not stated. */
export function edgeLetters(orientation, pose) {
  if (!orientation) return null;
  const [row, column] = orientation; // where x and y grow to
  let sides = [row, column, opposite(row), opposite(column)]; // right, bottom, left, top
  if (pose.flipped) sides = [sides[2], sides[1], sides[0], sides[3]];
  const at = (i) => sides[(i - pose.turns + 8) % 4];
  return { right: at(0), bottom: at(1), left: at(2), top: at(3) };
}

/** Distance of two points of the image, in millimetres where the spacing is known. */
export function distance([x0, y0], [x1, y1], spacing, aspect) {
  if (!spacing) return { value: Math.hypot(x1 - x0, (y1 - y0) * aspect), unit: "px" };
  return { value: Math.hypot((x1 - x0) * spacing.column, (y1 - y0) * spacing.row), unit: "mm" };
}

/** What lengths mean, in a sentence. */
export function spacingSentence(spacing, modality) {
  if (!spacing) return "Spacing not known: lengths in pixels.";
  const projection = ["CR", "DX", "RG", "MG", "XA", "RF", "IO", "PX"].includes(modality);
  if (spacing.magnification) {
    return `Lengths in the patient: the detector's (Imager Pixel Spacing), by the magnification of ${spacing.magnification} that the file estimates.`;
  }
  if (spacing.source === "ImagerPixelSpacing") {
    return "Lengths at the detector (Imager Pixel Spacing): in the patient they are shorter.";
  }
  if (spacing.source === "NominalScannedPixelSpacing") {
    return "Lengths on the scanned film (Nominal Scanned Pixel Spacing).";
  }
  if (spacing.calibration) {
    return `Lengths by Pixel Spacing, calibrated by ${spacing.calibration.toLowerCase()}.`;
  }
  if (projection && spacing.corrected) {
    return "Lengths by Pixel Spacing, which differs from the detector's; how it was calibrated is not stated.";
  }
  if (projection) {
    return "Lengths by Pixel Spacing; whether calibrated for the patient is not stated.";
  }
  return "Lengths by Pixel Spacing.";
}
