-- Takes units of rate limits for a gateway, or gives them back. A limit is the time at which its
-- bucket will be full again (the generic cell rate algorithm), by this server's clock.
-- KEYS: the set of gateways, then a hash per limit.
-- ARGV: the gateway, 1 if it stops, then per limit: units, period in microseconds, units that may be
-- taken at once, units to take (or below zero: to give back), units without which requests are refused.
-- Returns the number of gateways, then per limit: units, and 1 if a gateway has had too few lately.

for at = 2, #KEYS do
  local first = 5 * at - 7
  local units, period = tonumber(ARGV[first]), tonumber(ARGV[first + 1])
  local at_once = tonumber(ARGV[first + 2])
  local asked, needed = tonumber(ARGV[first + 3]), tonumber(ARGV[first + 4])
  local state = redis.call('HMGET', KEYS[at], 'full_at', 'short_until')
  local full_at = tonumber(state[1]) or 0
  local short_until = tonumber(state[2]) or 0
  -- Never further away than a period, unless the clock was set back.
  full_at = math.max(now, math.min(full_at, now + period))
  local granted = 0
  if asked < 0 then
    full_at = full_at + math.ceil(asked * period / units)
  else
    local free = at_once - math.ceil((full_at - now) * units / period)
    granted = math.max(0, math.min(asked, free))
    full_at = full_at + math.ceil(granted * period / units)
  end
  if granted < needed then
    short_until = now + 3000000
  end
  local short = short_until > now
  if asked ~= 0 or granted < needed then
    redis.call('HSET', KEYS[at], 'full_at', whole(full_at), 'short_until', whole(short_until))
    local kept = math.max(full_at, short_until) - now
    redis.call('PEXPIRE', KEYS[at], whole(kept / 1000 + 1000))
  end
  reply[#reply + 1] = granted
  reply[#reply + 1] = short and 1 or 0
end
return reply
