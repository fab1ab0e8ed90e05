// The page: buttons, keys, messages from the application around it, files dropped on it.

import { attachGestures } from "./gestures.js";
import { attachControls, showControls } from "./overlay.js";
import { fetchStudy, keepView, StudyError } from "./study.js";
import { Viewer } from "./viewer.js";

const HELLO = "Drop DICOM, JPG or PNG files, or a ZIP of them, here.\nThey stay on the server that this page came from.";
const AGAIN_AFTER = 3000, KEPT_AFTER = 300;

const parts = Object.fromEntries([...document.querySelectorAll("[id]")].map((e) => [e.id, e]));
const options = new URLSearchParams(location.search);
let tool = "window";
let opening = null;
let wanted = null; // the study that is shown or on its way
let told = null; // the last overlay, which may come before its picture
const kept = new Map(); // how studies were seen, by name: newer than what the server may know
let keeping = 0; // a timer
let seen = ""; // how the picture was seen when the page around was last told, or told it

const viewer = new Viewer(parts, options.get("renderer"), changed);
window.viewer = viewer; // for tests and for the curious; it holds nothing that this page has not
viewer.clear(HELLO);
attachGestures(viewer, () => tool);
attachControls(viewer.overlay, parts, askOcclusion);

const actions = {
  invert: () => viewer.invert(),
  fit: () => viewer.fit(),
  one: () => viewer.oneToOne(),
  left: () => viewer.turn(-1),
  right: () => viewer.turn(1),
  flip: () => viewer.flip(false),
  flop: () => viewer.flip(true),
  reset: () => viewer.reset(),
  help: () => parts.help.showModal(),
};

const keys = [
  ["W P Z M", "drag: window and level, pan, zoom, ruler"],
  ["Drag", "what the tool says; right button zooms, middle button or Shift pans"],
  ["Two fingers", "zoom and pan"],
  ["Wheel", "zoom; scrolls frames where there are several (Ctrl zooms)"],
  ["← →", "narrower or wider window"],
  ["↑ ↓", "level up or down"],
  ["Shift + arrows", "pan"],
  ["+ −", "zoom in or out"],
  ["[ ]", "previous or next window preset or VOI LUT"],
  ["I", "invert"],
  ["F, 1, 0", "fit, one to one, as opened"],
  ["R, Shift+R", "turn right, left"],
  ["H, V", "flip left to right, top to bottom"],
  ["Page ↑ ↓, Home, End", "frames"],
  ["G", "overlay: next kind of map, or off"],
  ["O", "hide or show texts and marks"],
  ["Delete", "remove the last ruler; with Shift all"],
  ["?", "this list"],
];
parts.keys.append(...keys.flatMap(([key, what]) => {
  const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
  [dt.textContent, dd.textContent] = [key, what];
  return [dt, dd];
}));

const onKey = {
  w: () => choose("window"), p: () => choose("pan"), z: () => choose("zoom"), m: () => choose("ruler"),
  i: actions.invert, f: actions.fit, 1: actions.one, 0: actions.reset,
  r: actions.right, R: actions.left, h: actions.flip, v: actions.flop,
  "+": () => viewer.zoom(1.25), "=": () => viewer.zoom(1.25), "-": () => viewer.zoom(0.8),
  "[": () => step(-1), "]": () => step(1),
  g: () => nextOverlay(),
  o: () => { viewer.annotated = !viewer.annotated; viewer.schedule(); },
  ArrowLeft: (shift) => (shift ? viewer.pan(-40, 0) : viewer.dragWindow(-20, 0)),
  ArrowRight: (shift) => (shift ? viewer.pan(40, 0) : viewer.dragWindow(20, 0)),
  ArrowUp: (shift) => (shift ? viewer.pan(0, -40) : viewer.dragWindow(0, -20)),
  ArrowDown: (shift) => (shift ? viewer.pan(0, 40) : viewer.dragWindow(0, 20)),
  PageUp: () => viewer.setFrame(viewer.frame - 1), PageDown: () => viewer.setFrame(viewer.frame + 1),
  Home: () => viewer.setFrame(0), End: () => viewer.setFrame(viewer.study.frames - 1),
  Delete: (shift) => { viewer.rulers.splice(shift ? 0 : -1); viewer.schedule(); },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (["SELECT", "INPUT"].includes(event.target.tagName) && event.key.length > 1) return;
  if (press(event.key, event.shiftKey)) event.preventDefault();
});

/** Do what a key means, pressed here or beside the picture; tell whether it means anything. */
function press(pressed, shift) {
  if (parts.help.open) return false;
  if (pressed === "?") actions.help();
  const key = shift ? pressed : pressed.replace(/^[A-Z]$/, (letter) => letter.toLowerCase());
  const act = onKey[key] ?? onKey[key.toLowerCase()];
  if (!act || !viewer.study) return false;
  act(shift);
  return true;
}

parts.bar.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.tool) choose(button.dataset.tool);
  else if (button?.dataset.do === "help") actions.help();
  else if (button && viewer.study) actions[button.dataset.do]();
});
parts.presets.addEventListener("change", () => viewer.choose(Number(parts.presets.value)));
parts.frame.addEventListener("input", () => viewer.setFrame(Number(parts.frame.value) - 1));

function choose(name) {
  tool = name;
  parts.stage.dataset.tool = name;
  for (const button of parts.bar.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === name));
  }
}

function step(by) {
  const count = viewer.choices.length;
  viewer.choose((viewer.choice < 0 ? 0 : viewer.choice + by + count) % count);
}

function nextOverlay() {
  const kinds = [...parts["overlay-kind"].options].filter((option) => !option.disabled).map((option) => option.value);
  if (!viewer.overlay.data) return;
  parts["overlay-kind"].value = kinds[(kinds.indexOf(viewer.overlay.kind) + 1) % kinds.length];
  parts["overlay-kind"].dispatchEvent(new Event("change"));
}

function askOcclusion() {
  window.parent.postMessage({ explain: viewer.study.name }, location.origin);
}

function showOverlay() {
  if (told?.layers && viewer.study?.name === told.study) viewer.overlay.set(told);
  if (viewer.overlay.wanting) askOcclusion();
}

/** Tell the page around how the picture is seen, for a second one beside it that moves with it. */
function tellView() {
  const view = JSON.stringify(viewer.view);
  if (view === seen) return;
  const first = !seen; // as opened: nobody has moved it
  seen = view;
  if (!first && window.parent !== window) window.parent.postMessage({ view: viewer.view }, location.origin);
}

function follow(view) {
  viewer.follow(view);
  seen = JSON.stringify(viewer.view); // this is no news to whoever said so
}

/** Keep how the study is seen, soon; at once before another one takes its place. */
function keep(now = false) {
  clearTimeout(keeping);
  if (!viewer.study) return;
  const { name } = viewer.study, state = viewer.state;
  const text = JSON.stringify(state);
  if (text === kept.get(name)?.text) return;
  if (now) {
    const view = { ...state, at: performance.timeOrigin + performance.now() };
    kept.set(name, { text, view });
    keepView(name, view);
  } else keeping = setTimeout(keep, KEPT_AFTER, true);
}

/** The newer of what the server and this page know of how a study was seen. */
function lastSeen(study) {
  const own = kept.get(study.name)?.view;
  return own && own.at >= (study.seen?.at ?? 0) ? own : study.seen;
}

/** After every picture: bring the controls in line with it. */
function changed() {
  const { study } = viewer;
  showControls(viewer.overlay, parts);
  for (const button of parts.bar.querySelectorAll("[data-do]")) {
    button.disabled = !study && button.dataset.do !== "help";
  }
  parts.bar.querySelector("[data-do=invert]").setAttribute("aria-pressed", String(Boolean(study) && viewer.inverted));
  parts.presets.disabled = !study;
  parts.frames.hidden = !study || study.frames < 2;
  if (!study) return parts.presets.replaceChildren();
  tellView();
  keep();
  const names = viewer.choices.map((choice) => choice.name);
  if (viewer.choice < 0) names.push("By hand");
  if (names.join("\n") !== [...parts.presets.options].map((o) => o.text).join("\n")) {
    parts.presets.replaceChildren(...names.map((name, i) => new Option(name, String(i))));
  }
  parts.presets.selectedIndex = viewer.choice < 0 ? names.length - 1 : viewer.choice;
  parts.frame.max = String(study.frames);
  parts.frame.value = String(viewer.frame + 1);
  parts["frame-number"].textContent = `${viewer.frame + 1} of ${study.frames}`;
}

/** Open a study by its name; the last one asked for wins. */
async function open(name) {
  if (name === wanted) return; // asked for twice: neither load it again nor lose window and overlay
  wanted = name;
  opening?.abort();
  const mine = (opening = new AbortController());
  keep(true);
  delete document.documentElement.dataset.study;
  viewer.clear("Loading …");
  try {
    const study = await fetchStudy(name, mine.signal);
    if (mine !== opening) return;
    seen = "";
    const last = lastSeen(study);
    try {
      viewer.show(study, last);
    } catch { // kept by another version of this page
      viewer.show(study);
    }
    kept.set(name, { text: JSON.stringify(viewer.state), view: last });
    showOverlay();
    parts.pose.textContent = `Picture of ${study.columns} by ${study.rows} pixels is shown.`;
    document.documentElement.dataset.study = name;
  } catch (error) {
    if (mine !== opening || mine.signal.aborted) return;
    wanted = null;
    viewer.clear(error instanceof StudyError ? error.message : "This picture cannot be shown in this browser.");
    if (error.cause === "unreachable") setTimeout(() => mine === opening && open(name), AGAIN_AFTER);
    else if (!(error instanceof StudyError)) console.error(error);
  }
}

function close(sentence) {
  opening?.abort();
  keep(true);
  opening = wanted = null;
  delete document.documentElement.dataset.study;
  viewer.clear(sentence || HELLO);
}

window.addEventListener("pagehide", () => keep(true));
window.addEventListener("message", (event) => {
  if (event.origin !== location.origin || event.source !== window.parent) return;
  if (typeof event.data?.open === "string") open(event.data.open);
  if (event.data?.close) close(event.data.sentence);
  if (typeof event.data?.key === "string") press(event.data.key, event.data.shift);
  if (event.data?.identity?.study === viewer.study?.name && viewer.study) {
    viewer.identity = event.data.identity.lines;
    viewer.schedule();
  }
  if (event.data?.follow && viewer.study) follow(event.data.follow);
  if (event.data?.overlay) {
    told = { ...(told?.study === event.data.overlay.study ? told : {}), ...event.data.overlay };
    showOverlay();
  }
});

// What is dropped on the picture, folders too, goes where what is dropped beside it goes.
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (window.parent !== window) window.parent.dispatchEvent(new CustomEvent("dropped", { detail: event.dataTransfer }));
});

if (options.get("study")) open(options.get("study"));
if (window.parent !== window) window.parent.postMessage({ viewer: "ready" }, location.origin);
