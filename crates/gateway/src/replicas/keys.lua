-- Agrees to assignments of routing keys, or says what they are.
-- KEYS: one per routing key.
-- ARGV: the channel of news, then per key: pool and key, workers, the version that the gateway has seen,
-- 1 if its workers are others than those of that version, and for how many milliseconds it is kept.
-- A value is a version of 16 digits and the workers. The first claim of a version decides. A gateway
-- that knows a higher version than the server is right: the server has lost data.
-- Returns the value of each key. News have those that have changed, or are kept for longer.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local news, reply = {}, {}

for at = 1, #KEYS do
  local first = 5 * at - 3
  local workers, seen = ARGV[first + 1], tonumber(ARGV[first + 2])
  local changed, kept = ARGV[first + 3] == '1', tonumber(ARGV[first + 4])
  local value = redis.call('GET', KEYS[at])
  local version = value and tonumber(string.sub(value, 1, 16)) or 0
  local set = version < seen or (version == seen and (changed or not value))
  if set then
    if changed then
      seen = math.max(now, seen + 1)
    end
    value = string.format('%016.0f', seen) .. workers
    redis.call('SET', KEYS[at], value, 'PX', kept)
  else
    local left = redis.call('PTTL', KEYS[at])
    if left < kept then
      redis.call('PEXPIRE', KEYS[at], kept)
      set = true
    end
  end
  if set then
    news[#news + 1] = ARGV[first] .. value .. string.format('%016.0f', kept)
  end
  reply[at] = value
end
if #news > 0 then
  redis.call('PUBLISH', ARGV[1], table.concat(news))
end
return reply
