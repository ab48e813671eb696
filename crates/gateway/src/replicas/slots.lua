-- Divides limits on requests at a time among gateways.
-- KEYS: the set of gateways, then a hash per limit: per gateway the slots that it may use, those that it
-- wants, and when it asked; and, as 'grace', until when the others are waited for.
-- ARGV: the gateway, 1 if it stops, the gateways that it knows of, then per limit: slots in all, slots
-- that it may use now, and those that it wants.
-- Returns the number of gateways, then per limit: slots that it may use, and 1 if more are wanted than
-- there are.
local known, grace = math.max(1, tonumber(ARGV[3])), 8000000

-- The share of this gateway, and whether more is wanted than there is.
local function divide(wants, wanted, total)
  local sum = 0
  for _, want in ipairs(wants) do sum = sum + want[2] end
  if sum <= total then
    local count = math.max(#wants, gateways)
    local rest = total - sum
    local part = math.floor(rest / (2 * count))
    if part == 0 and rest >= count then part = 1 end
    return wanted + part, 0
  end
  table.sort(wants, function(one, other)
    if one[2] ~= other[2] then return one[2] < other[2] end
    return one[1] < other[1]
  end)
  local rest = total
  for at, want in ipairs(wants) do
    local left = #wants - at + 1
    local level = math.floor(rest / left)
    if want[2] <= level then
      rest = rest - want[2]
    else
      -- These get as many as each other; the odd ones go round.
      local odd, ids, place = rest - level * left, {}, nil
      for other = at, #wants do ids[#ids + 1] = wants[other][1] end
      table.sort(ids)
      for index, id in ipairs(ids) do
        if id == own then place = index end
      end
      if not place then return wanted, 1 end
      local turn = (place + math.floor(now / 1000000)) % left
      return math.min(wanted, level + (turn < odd and 1 or 0)), 1
    end
  end
  return wanted, 1
end

for at = 2, #KEYS do
  local first = 3 * at - 2
  local total, held, wanted = tonumber(ARGV[first]), tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
  local rows = redis.call('HGETALL', KEYS[at])
  local others, wants, until_then, seen = 0, {}, 0, false
  for row = 1, #rows, 2 do
    local id = rows[row]
    if id == 'grace' then
      until_then = tonumber(rows[row + 1])
    else
      local slots, want, when = string.match(rows[row + 1], '^(%d+) (%d+) (%d+)$')
      if not when or tonumber(when) < now - lease then
        redis.call('HDEL', KEYS[at], id)
      else
        seen = true
        if id ~= own then
          others = others + tonumber(slots)
          wants[#wants + 1] = {id, tonumber(want)}
        end
      end
    end
  end
  local allowed, short = 0, 0
  if leaves then
    redis.call('HDEL', KEYS[at], own)
  else
    if not seen then
      until_then = now + grace
      redis.call('HSET', KEYS[at], 'grace', whole(until_then))
    end
    wants[#wants + 1] = {own, wanted}
    allowed, short = divide(wants, wanted, total)
    if until_then > now then
      allowed = math.min(allowed, math.max(1, math.floor(total / known)))
    end
    if allowed > held then
      allowed = math.max(held, math.min(allowed, total - others))
      held = allowed
    end
    redis.call('HSET', KEYS[at], own, whole(held) .. ' ' .. whole(wanted) .. ' ' .. whole(now))
    redis.call('PEXPIRE', KEYS[at], 10000)
  end
  reply[#reply + 1] = allowed
  reply[#reply + 1] = short
end
return reply
