// Files to the server, two at a time, each with a result of its own.

const AT_A_TIME = 2;
const SKIPPED = new Set(["DICOMDIR", ".DS_Store", "Thumbs.db", "desktop.ini"]);

export class Queue {
  /** `changed` after every step; `arrived` after every file, with the answer and its group. */
  constructor(changed, arrived) {
    Object.assign(this, { changed, arrived, waiting: [], running: new Set() });
    this.reset();
  }

  reset() {
    Object.assign(this, { total: 0, done: 0, opened: 0, refused: 0, cancelled: 0, bytes: 0, sent: 0, since: performance.now() });
  }

  get busy() {
    return this.waiting.length + this.running.size > 0;
  }

  get share() {
    return this.bytes ? this.sent / this.bytes : 0;
  }

  /** Seconds that are left, by what was done so far; 0 while that tells nothing. */
  get left() {
    const passed = (performance.now() - this.since) / 1000;
    return this.share > 0.02 && passed > 1 ? (passed / this.share) * (1 - this.share) : 0;
  }

  /** Add pairs of file and name that were given together; `group` is told with what arrives of them. */
  add(files, group) {
    if (!this.busy) this.reset();
    for (const [file, name] of files) {
      if (SKIPPED.has(file.name)) continue;
      this.waiting.push([file, name, group]);
      this.total += 1;
      this.bytes += file.size + 1;
    }
    this.next();
  }

  cancel() {
    this.cancelled += this.waiting.length + this.running.size;
    this.waiting = [];
    for (const request of this.running) request.abort();
    this.changed();
  }

  next() {
    while (this.running.size < AT_A_TIME && this.waiting.length) this.send(...this.waiting.shift());
    this.changed();
  }

  send(file, name, group) {
    const request = new XMLHttpRequest();
    let sent = 0;
    const count = (now) => { this.sent += now - sent; sent = now; };
    request.open("POST", `/worklist/files?name=${encodeURIComponent(name)}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => { count(0.9 * event.loaded); this.changed(); };
    request.onloadend = () => {
      this.running.delete(request);
      count(file.size + 1);
      let told = null;
      try { told = JSON.parse(request.responseText); } catch { /* no answer */ }
      if (request.status === 429) {
        count(0);
        setTimeout(() => { this.waiting.push([file, name, group]); this.next(); }, 500);
      } else if (request.status === 200) {
        this.done += 1;
        this.opened += told.opened.length;
        this.refused += told.refused;
      } else if (request.status || !this.cancelled) {
        this.done += 1;
        this.refused += 1;
      }
      if (request.status === 200) this.arrived(told, group);
      this.next();
    };
    this.running.add(request);
    request.send(file);
  }
}

/** Return pairs of file and name of what was dropped, those in folders too. */
export async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => [file, file.name]);
  const found = [];
  for (const entry of entries) await walk(entry, found);
  return found;
}

async function walk(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
    if (file) found.push([file, entry.fullPath.replace(/^\//, "")]);
    return;
  }
  const reader = entry.createReader();
  for (;;) { // a reader gives a hundred at a time
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (!some.length) return;
    for (const inner of some) await walk(inner, found);
  }
}
