-- Some of the routing keys that there are.
-- ARGV: what their names begin with, the cursor, about how many keys of any kind to look at.
-- Returns the next cursor, then pool and key, value, and milliseconds for which it is kept, of each.
local found = redis.call('SCAN', ARGV[2], 'MATCH', ARGV[1] .. '*', 'COUNT', ARGV[3])
local reply = {found[1]}
for _, name in ipairs(found[2]) do
  local value, left = redis.call('GET', name), redis.call('PTTL', name)
  if value and left > 0 then
    reply[#reply + 1] = string.sub(name, #ARGV[1] + 1) .. value .. string.format('%016.0f', left)
  end
end
return reply
