// Drawing without WebGL2: cells are looked up into an off-screen picture, which is drawn.

export class Canvas2DRenderer {
  name = "2D";

  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.picture = document.createElement("canvas");
    this.words = new Uint32Array(1 << 16);
  }

  fits() {
    return true;
  }

  /** Take one frame's cells, a Uint16Array of rows times columns. */
  load(cells, columns, rows) {
    this.cells = cells;
    if (this.picture.width !== columns || this.picture.height !== rows || !this.image) {
      [this.picture.width, this.picture.height] = [columns, rows];
      this.off = this.picture.getContext("2d", { alpha: false });
      this.image = this.off.createImageData(columns, rows);
      this.pixels = new Uint32Array(this.image.data.buffer);
    }
  }

  /** Look every cell up in a Uint8Array of 65,536 grey levels. */
  shade(table) {
    const { cells, pixels, words } = this;
    for (let i = 0; i < words.length; i++) words[i] = (0xff000000 | (table[i] * 0x010101)) >>> 0;
    for (let i = 0; i < cells.length; i++) pixels[i] = words[cells[i]];
    this.off.putImageData(this.image, 0, 0);
  }

  /** Draw under a matrix from image to canvas. */
  draw(matrix, smoothly) {
    const { context, canvas } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillRect(0, 0, canvas.width, canvas.height);
    const shrinks = Math.hypot(matrix[0], matrix[1]) < 1;
    context.imageSmoothingEnabled = smoothly || shrinks;
    context.imageSmoothingQuality = shrinks ? "medium" : "low";
    context.setTransform(...matrix);
    context.drawImage(this.picture, 0, 0);
  }

  /** Wait until all is drawn: reading a pixel does. */
  finish() {
    this.context.getImageData(0, 0, 1, 1);
  }
}
