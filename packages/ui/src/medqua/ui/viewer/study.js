// A study's description and stored values from the server that this page came from.

const LITTLE_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

/** A sentence for people. */
export class StudyError extends Error {}

/** Fetch a study by its name; `signal` aborts. */
export async function fetchStudy(name, signal) {
  const base = `studies/${encodeURIComponent(name)}`;
  const [description, cells] = await Promise.all([
    answer(`${base}/description`, signal).then((response) => response.json()),
    answer(`${base}/pixels`, signal).then((response) => response.arrayBuffer()),
  ]);
  const expected = description.frames * description.rows * description.columns;
  if (cells.byteLength !== 2 * expected) {
    throw new StudyError("The picture arrived incomplete. Open the study again.");
  }
  return { ...description, name, cells: words(cells) };
}

async function answer(path, signal) {
  let response;
  try {
    response = await fetch(path, { signal, credentials: "same-origin" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new StudyError("The server does not answer. Trying again …", { cause: "unreachable" });
  }
  if (response.status === 404 || response.status === 403) {
    throw new StudyError("This study is no longer on the server. Upload its file again.");
  }
  if (!response.ok) throw new StudyError("The server could not send this study. Upload it again.");
  return response;
}

/** Keep on the server how a study is seen; the browser's time puts what it keeps in order. */
export function keepView(name, view) {
  const body = JSON.stringify(view);
  fetch(`studies/${encodeURIComponent(name)}/view`, { method: "PUT", body, keepalive: true }).catch(() => {});
}

function words(buffer) {
  if (!LITTLE_ENDIAN) {
    const view = new DataView(buffer);
    for (let i = 0; i < buffer.byteLength; i += 2) view.setUint16(i, view.getUint16(i, true));
  }
  return new Uint16Array(buffer);
}
