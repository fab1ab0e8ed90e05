// Around the picture: files in, the worklist, what goes out, and whether anybody answers.
// All texts of files and servers are written as text, never as HTML.

import { Comparison } from "./compare.js";
import { Queue, filesOf } from "./uploads.js";
import { attachArchive } from "./archive.js";

const QUIET = 5000, BUSY = 700, FIRST = 30000;
const part = (id) => document.getElementById(id);
const el = (tag, text = "", more = {}) => Object.assign(document.createElement(tag), { textContent: text }, more);
const count = (n, one, many) => `${n} ${n === 1 ? one : many}`;
const seconds = (s) => (s < 90 ? `${Math.max(1, Math.round(s))} s` : `${Math.round(s / 60)} min`);

const state = { opened: "", studies: [], refused: [], left: 0, waited: new Set(), shown: "", me: null };
let timer = 0, begun = false;

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

function open(name) {
  if (name === state.opened) return;
  const before = state.studies.find((study) => study.name === state.opened)?.patient;
  const now = state.studies.find((study) => study.name === name)?.patient;
  if (name === compare.other || !now || now !== before) compare.end(); // never two patients side by side
  state.opened = name;
  show();
  tell("opened", name);
  draw();
}

/** Have the viewer show the open study, at once: Gradio takes its time. */
function show() {
  const { contentWindow: viewer } = part("viewer");
  if (!viewer?.viewer) return; // it will say that it is ready
  viewer.postMessage(state.opened ? { open: state.opened } : { close: true }, location.origin);
}

window.addEventListener("message", (event) => {
  if (event.source === part("viewer").contentWindow && event.data?.viewer === "ready" && state.opened) show();
});

async function ask(path, options = {}) {
  const answer = await fetch(path, { cache: "no-store", ...options });
  if (answer.status === 401 || answer.status === 403) {
    const told = answer.headers.get("content-type")?.startsWith("application/json") && (await answer.json()).error;
    if (!told || told.includes("session")) location.reload(); // logged out, or a server that was started again
    throw new Error(told || "no session");
  }
  return answer;
}

async function poll() {
  clearTimeout(timer);
  try {
    if (!state.me || performance.now() - state.me.at > (loading() ? BUSY : QUIET)) {
      state.me = { ...(await (await ask("/state")).json()), at: performance.now() };
      about();
    }
    const told = await (await ask("/worklist")).json();
    part("away").hidden = true;
    Object.assign(state, { studies: told.studies, refused: told.refused, left: told.seconds_left });
    again();
    const names = state.studies.map((study) => study.name);
    if (state.opened && !names.includes(state.opened)) open(names[0] ?? "");
    else if (!state.opened && names.length) open(kept(names) ?? names[0]);
    draw();
  } catch (error) {
    if (error instanceof TypeError) part("away").hidden = false; // no answer at all
  }
  timer = setTimeout(poll, uploads.busy || waiting() || performance.now() < FIRST ? BUSY : QUIET);
}

/** The study that the light page had in view, which this one has taken the place of. */
function kept(names) {
  const name = sessionStorage.getItem("study");
  sessionStorage.removeItem("study");
  return names.find((one) => one === name);
}

const loading = () => Boolean(state.me?.engine.includes("being loaded"));
const waiting = () => state.studies.filter((study) => ["waiting", "reading"].includes(study.state)).length;

/** Show findings once an engine that was away has given them. */
function again() {
  for (const study of state.studies) {
    if (study.state === "waiting" && study.text) state.waited.add(study.name);
    else if (["read", "refused"].includes(study.state) && state.waited.delete(study.name) && study.name === state.opened) {
      tell("again", String(performance.now()));
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
  radio.addEventListener("change", () => open(study.name));
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
    await ask(`/worklist/${study.name}`, { method: "DELETE" }).catch(() => {});
    poll();
  });
  acts.append(close);
  box.append(acts);
  return box;
}

const compare = new Comparison(part("middle"), () => draw());
const uploads = new Queue(progress, (opened) => {
  if (opened) open(opened); // the first of what was dropped together
  poll();
});

for (const id of ["pick", "pick-folder"]) {
  part(id).addEventListener("change", () => {
    uploads.add([...part(id).files].map((file) => [file, file.webkitRelativePath || file.name]));
    part(id).value = "";
    poll();
  });
}
part("open-files").addEventListener("click", () => part("pick").click());
part("open-folder").addEventListener("click", () => part("pick-folder").click());
part("cancel").addEventListener("click", () => { uploads.cancel(); poll(); });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  uploads.add(await filesOf(event.dataTransfer));
  poll();
});
part("search").addEventListener("input", draw);
part("only").addEventListener("change", draw);
part("samples").addEventListener("click", async () => {
  part("status").textContent = "Opening …";
  const told = await (await ask("/worklist/samples", { method: "POST" })).json();
  part("status").textContent = `${count(told.opened.length, "study", "studies")} opened.`;
  poll();
});
part("close-all").addEventListener("click", async () => {
  uploads.cancel();
  compare.end();
  await ask("/worklist", { method: "DELETE" });
  part("status").textContent = "";
  poll();
});
/** The tab of what goes out is made when it is first opened. */
document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("#out [data-kind]");
  if (!button || !state.opened) return;
  event.preventDefault();
  const { kind } = button.dataset, says = part("sent");
  says.textContent = kind === "send" ? "Sending …" : "Writing …";
  try {
    const answer = await ask(`/export/${state.opened}/${kind}`, { method: kind === "send" ? "POST" : "GET" });
    if (!answer.ok) throw new Error((await answer.json()).error);
    if (kind === "send") says.textContent = (await answer.json()).told;
    else {
      const name = /filename="([^"]+)"/.exec(answer.headers.get("content-disposition"))[1];
      const link = el("a", "", { href: URL.createObjectURL(await answer.blob()), download: name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      says.textContent = `${name} is in your downloads.`;
    }
  } catch (error) {
    says.textContent = error instanceof TypeError ? "The viewer's server does not answer." : error.message;
  }
});
attachArchive(part("archive"), ask, (sentence) => { part("status").textContent = sentence; poll(); });

// until here a click would have been lost
for (const id of ["open-files", "open-folder", "pick", "pick-folder", "samples", "close-all"]) part(id).disabled = false;
poll();
