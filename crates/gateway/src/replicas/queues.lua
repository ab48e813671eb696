-- Says how many requests wait in queues at each gateway.
-- KEYS: the set of gateways, then a hash per queue: per gateway the requests that wait at it, the places
-- that it has use for, and when it said so. Gateways without either have no row.
-- ARGV: the gateway, 1 if it stops, then per queue: requests that wait at it, places that it has use for.
-- Returns the number of gateways, then per queue: how many follow, how many of them come before this one,
-- and of each, by name, both numbers.
for at = 2, #KEYS do
  local first = 2 * at - 1
  local waiting, wanted = ARGV[first], ARGV[first + 1]
  local rows = redis.call('HGETALL', KEYS[at])
  local all, was_known = {{own, waiting, wanted}}, false
  for row = 1, #rows, 2 do
    local id = rows[row]
    local waits, wants, when = string.match(rows[row + 1], '^(%d+) (%d+) (%d+)$')
    if id == own then
      was_known = true
    elseif not when or tonumber(when) < now - lease then
      redis.call('HDEL', KEYS[at], id)
    else
      all[#all + 1] = {id, waits, wants}
    end
  end
  if not leaves and (waiting ~= '0' or wanted ~= '0') then
    redis.call('HSET', KEYS[at], own, waiting .. ' ' .. wanted .. ' ' .. whole(now))
    redis.call('PEXPIRE', KEYS[at], 10000)
  elseif was_known then
    redis.call('HDEL', KEYS[at], own)
  end
  table.sort(all, function(one, other) return one[1] < other[1] end)
  reply[#reply + 1] = #all
  local place = #reply + 1
  for index, row in ipairs(all) do
    if row[1] == own then reply[place] = index - 1 end
    reply[place + 2 * index - 1] = tonumber(row[2])
    reply[place + 2 * index] = tonumber(row[3])
  end
end
return reply
