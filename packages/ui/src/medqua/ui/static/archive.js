// Search an archive and fetch studies from it.

const COLUMNS = ["patient", "name", "date", "modality", "description", "images"];

export function attachArchive(box, ask, told) {
  const form = box.querySelector("form"), table = box.querySelector("tbody");
  const says = box.querySelector("[role=status]"), fetchButton = box.querySelector("#fetch");

  async function post(path, body) {
    const answer = await ask(path, { method: "POST", body: JSON.stringify(body) });
    const document = await answer.json();
    if (!answer.ok) throw new Error(document.error ?? "It did not work.");
    return document;
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    says.textContent = "Searching …";
    table.replaceChildren();
    fetchButton.disabled = true;
    try {
      const { studies } = await post("/worklist/search", Object.fromEntries(new FormData(form)));
      says.textContent = studies.length === 1 ? "1 study" : `${studies.length} studies`;
      table.replaceChildren(...studies.map(row));
      box.querySelector("table").hidden = !studies.length;
    } catch (error) {
      says.textContent = error.message;
    }
  });

  function row(study) {
    const line = document.createElement("tr");
    const cell = document.createElement("td"), check = document.createElement("input");
    Object.assign(check, { type: "checkbox", value: study.uid });
    check.setAttribute("aria-label", `Fetch ${study.name} ${study.date}`);
    check.addEventListener("change", () => { fetchButton.disabled = !table.querySelector("input:checked"); });
    cell.append(check);
    line.append(cell, ...COLUMNS.map((name) => Object.assign(document.createElement("td"), { textContent: study[name] })));
    return line;
  }

  fetchButton.addEventListener("click", async () => {
    const studies = [...table.querySelectorAll("input:checked")].map((check) => check.value);
    says.textContent = "Fetching …";
    fetchButton.disabled = true;
    try {
      const { opened, refused } = await post("/worklist/fetch", { studies });
      says.textContent = "";
      told(`${opened.length} ${opened.length === 1 ? "study" : "studies"} opened${refused ? `, ${refused} not opened` : ""}.`);
    } catch (error) {
      says.textContent = error.message;
    }
  });
}
