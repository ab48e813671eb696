
let role = "user";
let opened = null;

function showNotice(text) {
  setText(byId("notice"), text);
}

const ACTIONS = {
  drain: {
    title: "Drain this worker?",
    text: (worker) => `${worker.name} gets no new requests; ${count(worker.requests)} in flight finish. It stays listed until it is undrained.`,
    label: "Drain",
    path: (worker) => `../workers/${worker.id}/drain`,
    done: (worker) => `${worker.name} is drained.`,
  },
  undrain: {
    title: "Undrain this worker?",
    text: (worker) => `${worker.name} gets requests again.`,
    label: "Undrain",
    path: (worker) => `../workers/${worker.id}/undrain`,
    done: (worker) => `${worker.name} gets requests again.`,
  },
  flush: {
    title: "Flush this worker's prefix cache?",
    text: (worker) => `${worker.name} computes every prompt anew until its cache has filled again.`,
    label: "Flush",
    path: (worker) => `../flush_cache?worker=${encodeURIComponent(worker.url)}`,
    done: (worker) => `The cache of ${worker.name} is flushed.`,
  },
  flushAll: {
    title: "Flush the prefix caches of all workers?",
    text: () => "Every worker computes every prompt anew until its cache has filled again.",
    label: "Flush all",
    path: () => "../flush_cache",
    done: () => "The caches of all workers are flushed.",
  },
};

// Asks before it acts; the answer that is chosen by itself is no.
function confirmAction(name, worker) {
  const action = ACTIONS[name];
  const dialog = byId("confirm-dialog");
  setText(byId("confirm-title"), action.title);
  setText(byId("confirm-text"), action.text(worker));
  setText(byId("confirm-do"), action.label);
  byId("confirm-do").onclick = async () => {
    dialog.close();
    try {
      const reply = await call(action.path(worker), {method: "POST"});
      const answer = await reply.json();
      showNotice(answer.status === "partial_success" ? answer.message : action.done(worker));
    } catch (error) {
      showNotice(`${action.label} failed: ${error.message}`);
    }
  };
  dialog.showModal();
  byId("confirm-cancel").focus();
}

function openWorker(id, from) {
  opened = {id, from};
  fillWorker(past.at(-1));
  byId("worker-dialog").showModal();
  byId("worker-close").focus();
}

// The dialog of a worker follows the snapshots, too.
function fillWorker(snapshot) {
  const worker = opened && snapshot?.byId.get(opened.id);
  if (!worker) {
    byId("worker-dialog").close();
    return;
  }
  const last = recent(worker);
  setText(byId("worker-title"), worker.name);
  fillList(byId("worker-list"), [
    ...COLUMNS.slice(1).map((column) => [column.label, column.text(worker, last)]),
    ["Past their first byte", count(worker.decoding)],
    ["Breaker's failures in a row", count(worker.breaker_failures)],
    ["Successes", count(worker.successes)],
    ["Streams", count(worker.streams)],
    ["Index", String(worker.index)],
    ["Id", worker.id],
  ]);
  const admin = role === "admin" && worker.status !== "draining";
  byId("worker-drain").hidden = !admin || worker.status === "drained";
  byId("worker-undrain").hidden = !admin || worker.status !== "drained";
  byId("worker-flush").hidden = !admin;
}

function setRole(name) {
  role = name;
  const admin = role === "admin";
  byId("flush").hidden = !admin;
  for (const control of byId("explain").elements) {
    control.disabled = !admin;
  }
  setText(byId("request-label"), admin ? "JSON body of a request; nothing is sent to a worker" : "Explaining a request needs the role admin");
}

function askForKey(message) {
  const dialog = byId("key-dialog");
  setText(byId("key-error"), message);
  byId("key-input").value = "";
  if (!dialog.open) {
    dialog.showModal();
  }
  byId("key-input").focus();
}

function prepareDialogs(connect) {
  byId("key").addEventListener("click", () => askForKey(""));
  byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
  byId("key-forget").addEventListener("click", () => {
    sessionStorage.removeItem(KEY);
    byId("key-dialog").close();
    connect();
  });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = byId("key-input").value.trim();
    if (!/^[\x21-\x7e]*$/.test(key)) {
      askForKey("A key has neither spaces nor letters beyond ASCII.");
    } else if (key) {
      sessionStorage.setItem(KEY, key);
      byId("key-input").value = "";
      byId("key-dialog").close();
      connect();
    }
  });
  byId("worker-close").addEventListener("click", () => byId("worker-dialog").close());
  byId("worker-dialog").addEventListener("close", () => {
    opened?.from.focus();
    opened = null;
  });
  byId("confirm-cancel").addEventListener("click", () => byId("confirm-dialog").close());
  for (const name of ["drain", "undrain", "flush"]) {
    byId(`worker-${name}`).addEventListener("click", () => {
      confirmAction(name, past.at(-1).byId.get(opened.id));
    });
  }
  byId("flush").addEventListener("click", () => confirmAction("flushAll", null));
}
