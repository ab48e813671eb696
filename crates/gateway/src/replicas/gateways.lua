-- What scripts of limits begin with: the clock, and the gateways of the last seconds.
-- KEYS[1]: the set of gateways. ARGV: the gateway, 1 if it stops.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local own, leaves, lease = ARGV[1], ARGV[2] == '1', 3000000
local function whole(number) return string.format('%.0f', number) end

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', whole(now - lease))
if leaves then
  redis.call('ZREM', KEYS[1], own)
else
  redis.call('ZADD', KEYS[1], whole(now), own)
  redis.call('PEXPIRE', KEYS[1], 10000)
end
local gateways = redis.call('ZCARD', KEYS[1])
local reply = {gateways}

