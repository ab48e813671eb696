
const sum = (workers, field) => workers.reduce((total, worker) => total + worker[field], 0);

function showTiles(snapshot) {
  const {workers} = snapshot;
  const oldest = past.find((other) => other.workers.length > 0) || snapshot;
  const seconds = snapshot.uptime_secs - oldest.uptime_secs;
  // Workers that have left or joined meanwhile would spoil the differences.
  const stay = workers.filter((worker) => oldest.byId.has(worker.id));
  const then = stay.map((worker) => oldest.byId.get(worker.id));
  const since = (field) => sum(stay, field) - sum(then, field);
  const ratio = (part, all) => divide(since(part), since(all)) ?? divide(sum(workers, part), sum(workers, all));
  const perSecond = (number) => (seconds > 0 ? number / seconds : null);
  const ready = workers.filter((worker) => worker.selectable).length;
  const waiting = (snapshot.limits.queued || 0) + (snapshot.limits.queued_for_a_worker || 0);
  const tiles = [
    ["Workers serving", `${count(ready)} of ${count(workers.length)}`],
    ["In flight", count(sum(workers, "requests"))],
    ["Waiting", count(waiting)],
    ["Queued tokens", count(sum(workers, "queued_tokens"))],
    ["Requests/s", rate(perSecond(since("successes") + since("failures")))],
    ["Errors/s", rate(perSecond(since("failures")))],
    ["Hits predicted", percent(ratio("predicted_tokens", "prompt_tokens"))],
    ["Hits reported", percent(ratio("reported_tokens", "reported_prompt_tokens"))],
    ["TTFT", time(ratio("ttft_secs", "streams"))],
  ];
  const list = byId("tiles");
  tiles.forEach(([name, value], at) => {
    const tile = list.children[at] || list.appendChild(make("div", {}, make("dt"), make("dd")));
    setText(tile.firstChild, name);
    setText(tile.lastChild, value);
  });
  const about = [`version ${snapshot.version}`, snapshot.policy, `up ${age(snapshot.uptime_secs)}`];
  setText(byId("about"), (snapshot.draining ? [...about, "stopping"] : about).join(" · "));
}

const POOLS = ["Model", "Role", "Policy", "Workers", "Serving", "Last resort", "In flight", "Waiting"];

function showPools(snapshot) {
  const pools = snapshot.pools.map((pool) => {
    const of = snapshot.workers.filter((worker) => worker.role === pool.role && (pool.model === null || worker.model === pool.model));
    const resort = count(pool.fallback) + (pool.panicking ? ", breakers are ignored" : "");
    return [pool.model ?? "any", pool.role, pool.policy, count(of.length), count(pool.selectable), resort, count(sum(of, "requests")), count(pool.queued)];
  });
  fillTable(byId("pools-table"), POOLS, pools, "No model is known yet.");
}

// A count is known only where its limit is set.
const LIMITS = {
  max_concurrent_requests: "Concurrent requests, limit",
  concurrent_requests: "Concurrent requests, counted",
  rate_limit_tokens_per_second: "Requests per second, limit",
  max_requests_per_worker: "Requests per worker, limit",
  queue_size: "Queue size",
  queue_timeout_secs: "Longest wait, s",
  queue_order: "Queue order",
  queued: "Wait for the limits",
  queued_for_a_worker: "Wait for a worker",
};

function showLimits(snapshot) {
  const names = new Set([...Object.keys(LIMITS), ...Object.keys(snapshot.limits)]);
  const entries = [...names].filter((name) => name in snapshot.limits).map((name) => {
    const value = snapshot.limits[name];
    const text = typeof value === "number" ? count(value) : value === null ? "none" : String(value);
    return [LIMITS[name] || name.replaceAll("_", " "), text];
  });
  fillList(byId("limits"), entries);
}

const DECISIONS = ["Age", "Request", "Endpoint", "Worker", "Policy", "Why"];

function why(decision) {
  const tokens = count(decision.prompt_tokens);
  const parts = [
    decision.matched_tokens ? `${count(decision.matched_tokens)} of ${tokens} prompt tokens are cached there` : `${tokens} prompt tokens, none known to be cached there`,
    `before it ${count(decision.requests_before)} in flight and ${count(decision.queued_tokens_before)} tokens queued`,
  ];
  if (decision.tries_before) {
    parts.push(`try ${decision.tries_before + 1}`);
  }
  return parts.join("; ");
}

function showDecisions(snapshot) {
  const decisions = snapshot.decisions.map((decision) => [
    age(decision.age_secs), decision.request_id, decision.endpoint, decision.worker ?? "has left", decision.policy, why(decision),
  ]);
  fillTable(byId("decisions-table"), DECISIONS, decisions, "No request has been routed yet.");
}

const EXPLAINED = ["Worker", "Cost", "Cached tokens", "New tokens", "Queued tokens", "In flight", "Note"];

function showExplanation(found) {
  const table = byId("explained");
  const candidates = found.candidates.map((candidate, at) => [
    candidate.worker, count(Math.round(candidate.cost)), count(candidate.matched_tokens), count(candidate.new_tokens),
    count(candidate.queued_tokens), count(candidate.requests), candidate.passed_over ? "passed over" : at === 0 ? "would be chosen first" : "",
  ]);
  fillTable(table, EXPLAINED, candidates, "No worker takes requests.");
  const parts = [`${found.policy}, ${found.endpoint}, ${count(found.prompt_tokens)} prompt tokens, ${count(candidates.length)} candidates`];
  if (found.not_ready.length) {
    parts.push(`not ready: ${found.not_ready.join(", ")}`);
  }
  setText(byId("explain-status"), parts.join("; "));
}

async function explain(event) {
  event.preventDefault();
  const body = byId("request").value;
  setText(byId("explain-status"), "Asking");
  try {
    const reply = await call("../route/explain", {method: "POST", body, headers: {"content-type": "application/json"}});
    showExplanation(await reply.json());
  } catch (error) {
    byId("explained").replaceChildren();
    setText(byId("explain-status"), `Not explained: ${error.message}`);
  }
}
