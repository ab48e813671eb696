
// The key goes into a header, never into a URL; a tab forgets it when it is closed.
const KEY = "smg-fleet-key";
const SILENCE = 5000;
const PAUSE = 1000;

function headers(more) {
  const key = sessionStorage.getItem(KEY);
  return key ? {...more, authorization: `Bearer ${key}`} : {...more};
}

// Asks the gateway; what it refuses is an Error with its message.
async function call(path, options) {
  const reply = await fetch(path, {credentials: "omit", cache: "no-store", ...options, headers: headers(options.headers)});
  if (reply.ok) {
    return reply;
  }
  let why = `${reply.status} ${reply.statusText}`;
  try {
    const body = await reply.json();
    why = body.error?.message || body.message || body.error || why;
  } catch {
    // The status says it all.
  }
  throw Object.assign(new Error(why), {status: reply.status});
}

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// The events of a stream, one by one: name and data.
async function readEvents(reply, touch, use) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) {
      return;
    }
    touch();
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      let name = "message", data = "";
      for (const line of event.split("\n")) {
        if (line.startsWith("event: ")) name = line.slice(7);
        if (line.startsWith("data: ")) data = line.slice(6);
      }
      use(name, JSON.parse(data));
    }
  }
}

// One stream after another, until a key is needed.
const feed = {
  abort: new AbortController(),
  running: 0,

  stop() {
    this.running += 1;
    this.abort.abort();
  },

  async run(use, show) {
    this.stop();
    const mine = this.running;
    for (let pause = PAUSE; mine === this.running;) {
      const abort = this.abort = new AbortController();
      let silence = 0;
      const touch = () => {
        clearTimeout(silence);
        silence = setTimeout(() => abort.abort(), SILENCE);
      };
      try {
        touch();
        const reply = await call("fleet/stream", {signal: abort.signal});
        pause = PAUSE;
        await readEvents(reply, touch, use);
        // It has had its time: rights are checked anew.
        await sleep(PAUSE / 4);
      } catch (error) {
        if (mine !== this.running) {
          return;
        }
        if (error.status === 401 || error.status === 403) {
          show("key", error.message);
          return;
        }
        show("lost", error.status ? error.message : "no connection to the gateway");
        await sleep(pause);
        pause = Math.min(2 * pause, 8 * PAUSE);
      } finally {
        clearTimeout(silence);
      }
    }
  },
};
