
function show(snapshot) {
  showTiles(snapshot);
  showWorkers(snapshot);
  showPools(snapshot);
  showLimits(snapshot);
  showDecisions(snapshot);
  announce(snapshot);
  if (opened) {
    fillWorker(snapshot);
  }
}

function showConnection(state, text) {
  const tones = {live: "good", lost: "bad", key: "warn"};
  setAttribute(byId("connection"), "data-tone", tones[state] || null);
  setText(byId("connection"), text);
  document.documentElement.classList.toggle("stale", state !== "live");
}

function connect() {
  setAttribute(byId("pause"), "aria-pressed", "false");
  showConnection("", "Connecting");
  feed.run(
    (name, data) => {
      if (name === "viewer") {
        setRole(data.role);
      } else {
        showConnection("live", role === "admin" ? "Live" : "Live, to look at only");
        remember(data);
        show(data);
      }
    },
    (state, message) => {
      showConnection(state, state === "key" ? "A key is needed" : `Not live: ${message}`);
      if (state === "key") {
        askForKey(sessionStorage.getItem(KEY) ? message : "");
      }
    },
  );
}

// What moves can be stopped. A tab that is paused or not seen takes no viewer's place.
function follow() {
  const paused = byId("pause").getAttribute("aria-pressed") === "true";
  if (paused || document.hidden) {
    feed.stop();
    showConnection("", "Paused");
  } else if (!byId("key-dialog").open) {
    connect();
  }
}

byId("pause").addEventListener("click", () => {
  const paused = byId("pause").getAttribute("aria-pressed") === "true";
  setAttribute(byId("pause"), "aria-pressed", String(!paused));
  follow();
});
document.addEventListener("visibilitychange", follow);

makeHead(() => past.length && showWorkers(past.at(-1)));
byId("explain").addEventListener("submit", explain);
prepareDialogs(connect);
setRole("user");
connect();
