// Drawing with WebGL2. Cells stay 16-bit integers in their texture. A first pass looks every cell
// up into a texture of grey levels of the image's size; a second draws that under the pose. Only
// the second runs when the pose alone changes.

const WHOLE = `#version 300 es
const vec2 corners[3] = vec2[](vec2(-1, -1), vec2(3, -1), vec2(-1, 3));
void main() { gl_Position = vec4(corners[gl_VertexID], 0, 1); }`;

const LOOK_UP = `#version 300 es
precision highp float; precision highp int;
precision highp usampler2D;
uniform usampler2D cells;
uniform sampler2D levels;
out vec4 grey;
void main() {
  uint cell = texelFetch(cells, ivec2(gl_FragCoord.xy), 0).r;
  grey = texelFetch(levels, ivec2(int(cell & 255u), int(cell >> 8)), 0);
}`;

const DRAW = `#version 300 es
precision highp float; precision highp int;
uniform sampler2D image;
uniform vec4 inverse;
uniform vec2 offset;
uniform float height;
uniform int samples;
uniform bool smoothly;
out vec4 colour;
void main() {
  vec2 size = vec2(textureSize(image, 0));
  vec2 corner = vec2(gl_FragCoord.x, height - gl_FragCoord.y) - 0.5;
  float sum = 0.0;
  for (int i = 0; i < samples; i++) {
    for (int j = 0; j < samples; j++) {
      vec2 q = corner + (vec2(float(i), float(j)) + 0.5) / float(samples) - offset;
      vec2 p = vec2(inverse.x * q.x + inverse.z * q.y, inverse.y * q.x + inverse.w * q.y);
      if (all(greaterThanEqual(p, vec2(0))) && all(lessThan(p, size))) {
        sum += smoothly ? textureLod(image, p / size, 0.0).r
                        : texelFetch(image, ivec2(floor(p)), 0).r;
      }
    }
  }
  float grey = sum / float(samples * samples);
  colour = vec4(grey, grey, grey, 1);
}`;

const SOFTWARE = /swiftshader|llvmpipe|softpipe|software|basic render/i;

/** Tell on a canvas of its own, since one has one context for life. Not every browser keeps to the caveat. */
function drawnByGpu() {
  const gl = document.createElement("canvas").getContext("webgl2", { failIfMajorPerformanceCaveat: true });
  if (!gl) return false;
  const known = gl.getExtension("WEBGL_debug_renderer_info");
  const name = gl.getParameter(known ? known.UNMASKED_RENDERER_WEBGL : gl.RENDERER);
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return !SOFTWARE.test(name);
}

export class WebGLRenderer {
  name = "WebGL2";

  /** Null where WebGL2 is absent or, unless insisted on, drawn without a GPU: 2D is faster then. */
  static create(canvas, insist) {
    if (!insist && !drawnByGpu()) return null;
    const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
    return gl ? new WebGLRenderer(canvas, gl) : null;
  }

  constructor(canvas, gl) {
    this.canvas = canvas;
    this.gl = gl;
    this.most = gl.getParameter(gl.MAX_TEXTURE_SIZE);
    this.lookUp = program(gl, LOOK_UP);
    this.drawing = program(gl, DRAW);
    this.levels = this.texture(gl.NEAREST);
    gl.texStorage2D(gl.TEXTURE_2D, 1, gl.R8, 256, 256);
    this.frame = gl.createFramebuffer();
    gl.bindVertexArray(gl.createVertexArray());
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  }

  fits(columns, rows) {
    return Math.max(columns, rows) <= this.most;
  }

  texture(filter) {
    const { gl } = this;
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    for (const [name, value] of [
      [gl.TEXTURE_MIN_FILTER, filter], [gl.TEXTURE_MAG_FILTER, filter],
      [gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE], [gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE],
    ]) gl.texParameteri(gl.TEXTURE_2D, name, value);
    return texture;
  }

  /** Take one frame's cells, a Uint16Array of rows times columns. */
  load(cells, columns, rows) {
    const { gl } = this;
    if (columns !== this.columns || rows !== this.rows) {
      gl.deleteTexture(this.cells ?? null);
      gl.deleteTexture(this.grey ?? null);
      this.cells = this.texture(gl.NEAREST);
      gl.texStorage2D(gl.TEXTURE_2D, 1, gl.R16UI, columns, rows);
      this.grey = this.texture(gl.LINEAR);
      gl.texStorage2D(gl.TEXTURE_2D, 1, gl.R8, columns, rows);
      gl.bindFramebuffer(gl.FRAMEBUFFER, this.frame);
      gl.framebufferTexture2D(
        gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, this.grey, 0);
      [this.columns, this.rows] = [columns, rows];
    }
    gl.bindTexture(gl.TEXTURE_2D, this.cells);
    gl.texSubImage2D(
      gl.TEXTURE_2D, 0, 0, 0, columns, rows, gl.RED_INTEGER, gl.UNSIGNED_SHORT, cells);
  }

  /** Look every cell up in a Uint8Array of 65,536 grey levels. */
  shade(table) {
    const { gl } = this;
    gl.useProgram(this.lookUp.program);
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_2D, this.levels);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, 256, 256, gl.RED, gl.UNSIGNED_BYTE, table);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.cells);
    gl.uniform1i(this.lookUp.at("cells"), 0);
    gl.uniform1i(this.lookUp.at("levels"), 1);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.frame);
    gl.viewport(0, 0, this.columns, this.rows);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  /** Draw under a matrix from image to canvas. */
  draw([a, b, c, d, e, f], smoothly) {
    const { gl, canvas } = this;
    const det = a * d - b * c;
    const shrink = Math.max(1 / Math.hypot(a, b), 1 / Math.hypot(c, d));
    gl.useProgram(this.drawing.program);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.grey);
    gl.uniform1i(this.drawing.at("image"), 0);
    gl.uniform4f(this.drawing.at("inverse"), d / det, -b / det, -c / det, a / det);
    gl.uniform2f(this.drawing.at("offset"), e, f);
    gl.uniform1f(this.drawing.at("height"), canvas.height);
    gl.uniform1i(this.drawing.at("samples"), Math.min(Math.max(Math.ceil(shrink), 1), 8));
    gl.uniform1i(this.drawing.at("smoothly"), smoothly && !(shrink === 1) ? 1 : 0);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  /** Wait until all is drawn: reading a pixel does. */
  finish() {
    const { gl } = this;
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
  }
}

function program(gl, fragment) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, WHOLE], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  const places = new Map();
  const at = (name) => {
    if (!places.has(name)) places.set(name, gl.getUniformLocation(made, name));
    return places.get(name);
  };
  return { program: made, at };
}
