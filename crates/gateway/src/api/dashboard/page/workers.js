
// Sums of the last minute, by differences of snapshots.
const MINUTE = 60;
const past = [];

function remember(snapshot) {
  const before = past.at(-1);
  if (before && snapshot.uptime_secs < before.uptime_secs) {
    past.length = 0;
  }
  snapshot.byId = new Map(snapshot.workers.map((worker) => [worker.id, worker]));
  past.push(snapshot);
  while (past.length > MINUTE + 1) {
    past.shift();
  }
}

// What a worker did in the last minute.
function recent(worker) {
  const now = past.at(-1);
  const oldest = past.find((snapshot) => snapshot.byId.has(worker.id));
  const before = oldest.byId.get(worker.id);
  const since = (field) => worker[field] - before[field];
  const ratio = (part, all) => divide(since(part), since(all)) ?? divide(worker[part], worker[all]);
  const seconds = now.uptime_secs - oldest.uptime_secs;
  return {
    predicted: ratio("predicted_tokens", "prompt_tokens"),
    reported: ratio("reported_tokens", "reported_prompt_tokens"),
    ttft: ratio("ttft_secs", "streams"),
    errors: since("failures"),
    rate: seconds > 0 ? (since("successes") + since("failures")) / seconds : null,
  };
}

function tone(worker) {
  if (worker.status === "ready") {
    return worker.selectable ? "good" : "warn";
  }
  return ["not_ready", "failed"].includes(worker.status) ? "bad" : "warn";
}

function stateOf(worker) {
  const more = [];
  if (worker.paused) more.push("paused");
  if (worker.status === "ready" && !worker.selectable && !worker.paused) more.push("held back");
  return [worker.status, ...more].join(", ");
}

const BREAKER = {closed: "good", half_open: "warn", open: "bad"};
const errorsOf = (worker, last) => count(worker.failures) + (last.errors > 0 ? ` (+${count(last.errors)})` : "");

// Label, what is shown, what is sorted by (the text where nothing else is said), and the tone.
const COLUMNS = [
  {id: "name", label: "Worker", text: (w) => w.name},
  {id: "state", label: "State", text: stateOf, tone},
  {id: "role", label: "Role", text: (w) => w.role},
  {id: "rank", label: "Rank", text: (w) => (w.rank === null ? NONE : String(w.rank)), key: (w) => w.rank ?? -1, number: true},
  {id: "model", label: "Model", text: (w) => w.model},
  {id: "requests", label: "In flight", text: (w) => count(w.requests), key: (w) => w.requests, number: true},
  {id: "queued", label: "Queued tokens", text: (w) => count(w.queued_tokens), key: (w) => w.queued_tokens, number: true},
  {id: "predicted", label: "Hits predicted", text: (w, l) => percent(l.predicted), key: (w, l) => l.predicted ?? -1, number: true},
  {id: "reported", label: "Hits reported", text: (w, l) => percent(l.reported), key: (w, l) => l.reported ?? -1, number: true},
  {id: "breaker", label: "Breaker", text: (w) => w.circuit_breaker.replace("_", " "), tone: (w) => BREAKER[w.circuit_breaker] || "warn"},
  {id: "ttft", label: "TTFT", text: (w, l) => time(l.ttft), key: (w, l) => l.ttft ?? -1, number: true},
  {id: "rate", label: "Requests/s", text: (w, l) => rate(l.rate), key: (w, l) => l.rate ?? -1, number: true},
  {id: "errors", label: "Errors", text: errorsOf, key: (w) => w.failures, number: true, tone: (w, l) => (l.errors > 0 ? "bad" : null)},
];

const order = {column: null, descending: false, filter: ""};
const rows = new Map();

function makeHead(changed) {
  const head = byId("workers-table").tHead.rows[0];
  const select = byId("sort");
  select.append(make("option", {value: ""}, "Order of registration"));
  for (const column of COLUMNS) {
    const button = make("button", {type: "button"}, column.label);
    button.addEventListener("click", () => {
      const again = order.column === column;
      // The first click shows the largest numbers, and texts from A on.
      order.descending = again ? !order.descending : Boolean(column.number);
      order.column = column;
      changed();
    });
    const cell = make("th", {scope: "col", role: "columnheader"}, button);
    cell.classList.toggle("number", Boolean(column.number));
    head.append(cell);
    select.append(make("option", {value: column.id}, column.label));
  }
  select.addEventListener("change", () => {
    order.column = COLUMNS.find((column) => column.id === select.value) || null;
    order.descending = Boolean(order.column?.number);
    changed();
  });
  byId("filter").addEventListener("input", (event) => {
    order.filter = event.target.value.trim().toLowerCase();
    changed();
  });
}

function makeRow(worker) {
  const name = make("button", {type: "button", class: "name"}, make("bdi"));
  name.addEventListener("click", () => openWorker(worker.id, name));
  const cells = COLUMNS.map((column) => make("td", {role: "cell", "data-label": column.label, class: column.number ? "number" : ""}));
  const nodes = cells.map((cell, at) => (at === 0 ? cell.appendChild(name).firstChild : cell.appendChild(make("bdi"))));
  return {element: make("tr", {role: "row"}, ...cells), nodes, texts: [], tones: []};
}

function fillRow(row, worker, last) {
  COLUMNS.forEach((column, at) => {
    const text = column.text(worker, last);
    if (row.texts[at] !== text) {
      row.texts[at] = text;
      row.nodes[at].textContent = text;
    }
    const shade = column.tone ? column.tone(worker, last) : null;
    if (row.tones[at] !== shade) {
      row.tones[at] = shade;
      setAttribute(row.nodes[at], "data-tone", shade);
    }
  });
}

function sorted(entries) {
  const {column, descending} = order;
  if (!column) {
    return entries;
  }
  const key = column.key || ((worker, last) => column.text(worker, last).toLowerCase());
  const keyed = entries.map((entry) => ({...entry, key: key(entry.worker, entry.last)}));
  const sign = descending ? -1 : 1;
  return keyed.sort((a, b) => (a.key < b.key ? -sign : a.key > b.key ? sign : a.worker.index - b.worker.index));
}

function showWorkers(snapshot) {
  const body = byId("workers-table").tBodies[0];
  const entries = snapshot.workers.map((worker) => ({worker, last: recent(worker)}));
  for (const [id, row] of rows) {
    if (!snapshot.byId.has(id)) {
      row.element.remove();
      rows.delete(id);
    }
  }
  let shown = 0;
  let next = body.firstElementChild;
  for (const {worker, last} of sorted(entries)) {
    let row = rows.get(worker.id);
    if (!row) {
      rows.set(worker.id, row = makeRow(worker));
    }
    fillRow(row, worker, last);
    const text = `${worker.name} ${worker.model} ${worker.role} ${stateOf(worker)}`.toLowerCase();
    const hidden = !text.includes(order.filter);
    if (row.element.hidden !== hidden) {
      row.element.hidden = hidden;
    }
    shown += hidden ? 0 : 1;
    if (row.element === next) {
      next = next.nextElementSibling;
    } else {
      moveBefore(body, row.element, next);
    }
  }
  const all = snapshot.workers.length;
  setText(byId("shown"), shown === all ? `${count(all)} workers` : `${count(shown)} of ${count(all)} workers shown`);
  [...byId("workers-table").tHead.rows[0].cells].forEach((cell, at) => {
    const sorts = COLUMNS[at] === order.column;
    setAttribute(cell, "aria-sort", sorts ? (order.descending ? "descending" : "ascending") : null);
  });
  if (byId("sort").value !== (order.column?.id || "")) {
    byId("sort").value = order.column?.id || "";
  }
}

// A row that is moved would lose the focus.
function moveBefore(body, element, next) {
  const focused = element.contains(document.activeElement) ? document.activeElement : null;
  body.insertBefore(element, next);
  focused?.focus({preventScroll: true});
}

// What a screen reader says when workers change their state.
const states = new Map();

function announce(snapshot) {
  const first = states.size === 0;
  const changed = [];
  for (const worker of snapshot.workers) {
    if (states.get(worker.id) !== worker.status) {
      states.set(worker.id, worker.status);
      changed.push(`${worker.name} is ${worker.status}`);
    }
  }
  for (const id of states.keys()) {
    if (!snapshot.byId.has(id)) {
      states.delete(id);
      changed.push("a worker has left");
    }
  }
  if (changed.length && !first) {
    setText(byId("changes"), changed.length > 3 ? `${changed.length} workers changed their state` : changed.join(", "));
  }
}
