// Around the picture: files in, the worklist, what goes out, and whether anybody answers.
// All texts of files and servers are written as text, never as HTML.

import { Comparison } from "./compare.js";
import { Panel } from "./panel.js";
import { Queue, filesOf } from "./uploads.js";
import { attachArchive } from "./archive.js";

const QUIET = 5000, BUSY = 700, FIRST = 30000, LONGEST = 15000;
const part = (id) => document.getElementById(id);
const el = (tag, text = "", more = {}) => Object.assign(document.createElement(tag), { textContent: text }, more);
const count = (n, one, many) => `${n} ${n === 1 ? one : many}`;
const seconds = (s) => (s < 90 ? `${Math.max(1, Math.round(s))} s` : `${Math.round(s / 60)} min`);

const GONE = "This study is no longer on the server: it was closed, or its time was over.\nOpen its file again, or choose another study.";
const ENDED = "The studies that were open here are gone: their time without use was over, or the server was started again.";

const state = {
  opened: "", studies: [], refused: [], left: 0, waited: new Set(), shown: "", me: null,
  session: "", number: 0, // of the newest answer about the studies
  begun: false, // whether a study has been in view, or was looked for in vain
  wish: 0, // how often the user said what to have in view
};
const NOTHING = {};
let timer = 0, begun = false;
let expected = NOTHING; // what an upload's answer named that came late: the next list tells whether it is still there

function field(id) {
  return document.querySelector(`#${id} textarea, #${id} input`);
}

/** Give a hidden field of Gradio's a value, as if it had been typed. */
function tell(id, value) {
  const input = field(id);
  if (!input) return;
  input.value = value;
  input.dispatchEvent(new Event("input", { bubbles: true }));
}

/** Send a message to every viewer; each takes what is of its own study. */
function tellViewers(message) {
  for (const frame of document.querySelectorAll("iframe#viewer, #beside iframe")) {
    frame.contentWindow?.postMessage(message, location.origin);
  }
}

/**
 * Take note of an answer's number; false if a newer one was seen. Answers overtake each other: what
 * an old one does not name may have come since, and what it names may be gone.
 */
function newest({ session, number }) {
  if (state.session && session !== state.session) beginAnew(); // of this browser, in another tab
  if (number <= state.number) return false;
  Object.assign(state, { session, number });
  return true;
}

function beginAnew() {
  if (state.studies.length) sessionStorage.setItem("ended", "yes");
  location.reload();
  throw new Error("no session");
}

/** Have a study in view: nobody but the user says which, once there was one. */
function open(name, address = "pushState") {
  state.begun = true;
  if (name === state.opened) return;
  const before = state.studies.find((study) => study.name === state.opened)?.patient;
  const now = state.studies.find((study) => study.name === name)?.patient;
  if (name === compare.other || !now || now !== before) compare.end(); // never two patients side by side
  state.opened = name;
  if (address) history[address](null, "", `#${name}`);
  show();
  tell("opened", name);
  panel.show(name);
  part("sent") && (part("sent").textContent = "");
  draw();
}

/** Have none in view, and say why. */
function leave(sentence = "") {
  state.begun = true;
  compare.end();
  state.opened = "";
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  show(sentence);
  tell("opened", "");
  panel.show("");
  draw();
}

/** Open what the address names, else what this session had in view, else the most urgent that can be read. */
function beginWith(names, inView) {
  const addressed = location.hash.slice(1);
  if (addressed && !names.includes(addressed)) return leave(GONE);
  const last = addressed || (names.includes(inView) && inView);
  if (last) return open(last, "replaceState");
  const best = state.studies.reduce((one, other) => (rank(other) > rank(one) ? other : one));
  if (rank(best) >= 0 || !waiting()) open(best.name, "replaceState");
}

const rank = ({ state: how, frontal, urgency }) => (how === "refused" ? -2 : frontal ? urgency : -1);

window.addEventListener("popstate", () => {
  const name = location.hash.slice(1);
  state.wish += 1;
  if (!name) leave(); // as it was before the first was opened
  else if (state.studies.some((study) => study.name === name)) open(name, "");
  else leave(GONE);
});

/** Have the viewer show the open study, at once: Gradio takes its time. */
function show(sentence = "") {
  const { contentWindow: viewer } = part("viewer");
  if (!viewer?.viewer) return; // it will say that it is ready
  viewer.postMessage(state.opened ? { open: state.opened } : { close: true, sentence }, location.origin);
}

window.addEventListener("message", (event) => {
  if (event.source !== part("viewer").contentWindow || event.origin !== location.origin) return;
  if (event.data?.viewer === "ready" && state.opened) show();
  if (event.data?.explain === state.opened && state.opened) panel.occlusion();
});

async function ask(path, options = {}) {
  const answer = await fetch(path, { cache: "no-store", ...options });
  if (answer.status === 401 || answer.status === 403) {
    const told = answer.headers.get("content-type")?.startsWith("application/json") && (await answer.json()).error;
    if (!told || told.includes("session")) beginAnew(); // logged out, over, or a server that was started again
    throw new Error(told || "no session");
  }
  return answer;
}

const soon = () => ({ signal: AbortSignal.timeout(LONGEST) }); // an answer that never comes ends no polling

async function poll() {
  clearTimeout(timer);
  try {
    if (!state.me || performance.now() - state.me.at > (loading() ? BUSY : QUIET)) {
      state.me = { ...(await (await ask("/state", soon())).json()), at: performance.now() };
      about();
    }
    const told = await (await ask("/worklist", soon())).json();
    part("away").hidden = true;
    if (newest(told)) take(told);
    draw();
  } catch (error) {
    if (error instanceof TypeError || error.name === "TimeoutError") part("away").hidden = false; // no answer
  }
  timer = setTimeout(poll, uploads.busy || waiting() || performance.now() < FIRST ? BUSY : QUIET);
}

function take(told) {
  Object.assign(state, { studies: told.studies, refused: told.refused, left: told.seconds_left });
  again();
  const names = state.studies.map((study) => study.name);
  if (compare.other && !names.includes(compare.other)) compare.end();
  if (names.includes(expected.name)) grant(expected);
  expected = NOTHING;
  if (state.opened && !names.includes(state.opened)) leave(GONE);
  else if (!state.begun && (names.length || location.hash)) beginWith(names, told.in_view);
  for (const study of state.studies) {
    if ([state.opened, compare.other].includes(study.name)) tellViewers({ identity: study.identity });
  }
}

const loading = () => Boolean(state.me?.engine.includes("being loaded"));
const waiting = () => state.studies.filter((study) => ["waiting", "reading"].includes(study.state)).length;

/** Show findings once an engine that was away has given them. */
function again() {
  for (const study of state.studies) {
    if (study.state === "waiting" && study.text) state.waited.add(study.name);
    else if (["read", "refused"].includes(study.state) && state.waited.delete(study.name) && study.name === state.opened) {
      panel.findings();
    }
  }
}

function about() {
  const { user, login, engine, archive, roles } = state.me;
  part("engine").hidden = !engine || loading();
  part("engine").textContent = engine;
  part("who").hidden = !login;
  part("user").textContent = user;
  part("archive").hidden = !archive || !roles.includes("reveal");
  part("archive-name").textContent = archive;
  Object.assign(document.body.dataset, { mayExport: String(roles.includes("export")), archive: String(Boolean(archive)) });
}

const STATES = { waiting: "waiting", reading: "reading …", read: "", refused: "no findings: ", open: "" };

function draw() {
  const wanted = part("search").value.toLowerCase(), only = part("only").value;
  const studies = state.studies.filter((study) =>
    (!only || (only === "waiting" ? ["waiting", "reading"].includes(study.state) : study.state === only))
    && `${study.file} ${study.summary} ${study.text} patient ${study.patient}`.toLowerCase().includes(wanted));
  const key = JSON.stringify([studies, state.opened, state.refused, compare.other]);
  if (key !== state.shown) {
    state.shown = key;
    const focused = document.activeElement?.closest?.("#studies") && document.activeElement.dataset.key;
    part("list").replaceChildren(...studies.map(entry));
    if (focused) part("list").querySelector(`[data-key="${focused}"]`)?.focus();
    part("none").hidden = studies.length > 0 || !state.studies.length;
    part("refused").hidden = !state.refused.length;
    part("refusals").replaceChildren(...state.refused.map((refusal) => {
      const item = el("li");
      item.append(el("strong", refusal.file), el("br"), refusal.reason);
      return item;
    }));
    document.body.dataset.opened = String(Boolean(state.opened));
  }
  progress();
}

function progress() {
  const open = waiting(), total = state.studies.filter((study) => study.state !== "open").length;
  if (loading()) part("reading-progress").textContent = "The model is being loaded. Findings follow.";
  else part("reading-progress").textContent = open && total
    ? `Findings: ${total - open} of ${total}${state.left ? `, about ${seconds(state.left)} left` : ""}` : "";
  const { busy, done, total: files, left } = uploads;
  part("cancel").hidden = !busy;
  part("bar-of-files").hidden = !busy;
  if (busy) {
    part("bar-of-files").value = uploads.share;
    part("status").textContent = `Opening ${Math.min(done + 1, files)} of ${files}${left ? `, about ${seconds(left)} left` : ""}`;
    begun = true;
  } else if (begun) {
    begun = false;
    const { opened, refused, cancelled } = uploads;
    const words = opened || !refused ? [`${count(opened, "study", "studies")} opened`] : [];
    if (refused) words.push(`${count(refused, "file", "files")} not opened`);
    if (cancelled) words.push(`${count(cancelled, "file", "files")} cancelled`);
    part("status").textContent = `${words.join(", ")}.`;
  }
}

function entry(study) {
  const chosen = study.name === state.opened;
  const box = el("div", "", { className: "entry" });
  box.dataset.state = study.state;
  const label = el("label"), radio = el("input", "", { type: "radio", name: "study", value: study.name, checked: chosen });
  radio.dataset.key = study.name;
  radio.addEventListener("change", () => { state.wish += 1; open(study.name); });
  label.append(radio, el("span", `${study.file} — ${study.summary}`));
  const about = [];
  if (study.patient) about.push(`patient ${study.patient}${study.order ? `, study ${study.order} by date` : ""}`);
  const says = STATES[study.state] + (study.state === "waiting" && study.text ? `: ${study.text}` : study.state === "waiting" ? "" : study.text);
  if (says) about.push(says);
  box.append(label, el("p", about.join(" · "), { className: "state" }));
  const acts = el("div", "", { className: "acts" });
  const opened = state.studies.find((s) => s.name === state.opened);
  if (!chosen && study.patient && study.patient === opened?.patient) { // by its header: two studies of a patient
    const beside = compare.other === study.name;
    const button = el("button", beside ? "Stop comparing" : "Compare", { type: "button" });
    button.dataset.key = `compare-${study.name}`;
    button.setAttribute("aria-label", `${button.textContent}: ${study.file}`);
    button.addEventListener("click", () => { compare.toggle(study); draw(); });
    acts.append(button);
  }
  const close = el("button", "Close", { type: "button" });
  close.dataset.key = `close-${study.name}`;
  close.setAttribute("aria-label", `Close ${study.file}`);
  close.addEventListener("click", async () => {
    if (compare.other === study.name) compare.end();
    const told = await change(`/worklist/${study.name}`, { method: "DELETE" });
    if (told.number && state.opened === study.name) leave("This study was closed. Choose another one.");
    poll();
  });
  acts.append(close);
  box.append(acts);
  return box;
}

const compare = new Comparison(part("middle"), () => draw());
const panel = new Panel(ask, tellViewers);
const uploads = new Queue(progress, (told, wish) => {
  const [name] = told.opened;
  if (newest(told) || state.studies.some((study) => study.name === name)) grant({ name, wish });
  else if (name && stands(wish)) expected = { name, wish };
  poll();
});

const stands = (wish) => wish.number === state.wish && !wish.granted; // nothing else was wished since

/** Have the first study of what was dropped together in view, if that is still wished. */
function grant({ name, wish }) {
  if (!name || !stands(wish)) return;
  wish.granted = true;
  open(name);
}

/** Open the first of files that are given together. */
function upload(files) {
  uploads.add(files, { number: (state.wish += 1), granted: false });
  poll();
}

/** Ask for a change; what its answer tells is newer than what was asked before it. */
async function change(path, options) {
  try {
    const told = await (await ask(path, options)).json();
    if (told.number) newest(told);
    return told;
  } catch {
    return {}; // the next poll tells what there is
  }
}

for (const id of ["pick", "pick-folder"]) {
  part(id).addEventListener("change", () => {
    const files = [...part(id).files].map((file) => [file, file.webkitRelativePath || file.name]);
    part(id).value = "";
    upload(files);
  });
}
part("open-files").addEventListener("click", () => part("pick").click());
part("open-folder").addEventListener("click", () => part("pick-folder").click());
part("cancel").addEventListener("click", () => { uploads.cancel(); poll(); });
window.addEventListener("dropped", async (event) => upload(await filesOf(event.detail)));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  upload(await filesOf(event.dataTransfer));
});
part("search").addEventListener("input", draw);
part("only").addEventListener("change", draw);
part("samples").addEventListener("click", async () => {
  part("status").textContent = "Opening …";
  const { opened = [] } = await change("/worklist/samples", { method: "POST" });
  part("status").textContent = `${count(opened.length, "study", "studies")} opened.`;
  state.begun = Boolean(state.opened);
  poll();
});
part("close-all").addEventListener("click", async () => {
  uploads.cancel();
  const told = await change("/worklist", { method: "DELETE" });
  if (told.number) leave();
  part("status").textContent = "";
  poll();
});
/** The tab of what goes out is made when it is first opened. */
document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("#out [data-kind]");
  if (!button || !state.opened) return;
  event.preventDefault();
  const { kind } = button.dataset, name = state.opened;
  const says = { set textContent(text) { if (name === state.opened) part("sent").textContent = text; } };
  says.textContent = kind === "send" ? "Sending …" : "Writing …";
  try {
    const answer = await ask(`/export/${name}/${kind}`, { method: kind === "send" ? "POST" : "GET" });
    if (!answer.ok) throw new Error((await answer.json()).error);
    if (kind === "send") says.textContent = (await answer.json()).told;
    else {
      const file = /filename="([^"]+)"/.exec(answer.headers.get("content-disposition"))[1];
      const link = el("a", "", { href: URL.createObjectURL(await answer.blob()), download: file });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      says.textContent = `${file} is in your downloads.`;
    }
  } catch (error) {
    says.textContent = error instanceof TypeError ? "The viewer's server does not answer." : error.message;
  }
});
attachArchive(part("archive"), ask, (sentence) => {
  part("status").textContent = sentence;
  state.begun = Boolean(state.opened);
  poll();
});

/** Keys mean the same beside the picture as in it, but where one is typed or chooses. */
document.addEventListener("keydown", (event) => {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || !state.opened) return;
  if (target.closest?.("textarea, select, [role=tab], [role=slider], input:not([type=radio])")) return;
  if (["Tab", "Enter", " ", "Escape"].includes(key) || (target.type === "radio" && key.startsWith("Arrow"))) return;
  part("viewer").contentWindow.postMessage({ key, shift: event.shiftKey }, location.origin);
});

if (sessionStorage.getItem("ended")) part("status").textContent = ENDED;
sessionStorage.removeItem("ended");

// until here a click would have been lost
for (const id of ["open-files", "open-folder", "pick", "pick-folder", "samples", "close-all"]) part(id).disabled = false;
poll();
