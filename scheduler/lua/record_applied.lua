-- The owner records where inputs are in the picture. A repeat is harmless: entries at or before last_applied
-- are skipped.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  engine
-- ARGV[3]  epoch
-- ARGV[4…] entry id, message id or '', rev, seq; repeated, in log order
-- Derived  session:<id>:applied (list), session:<id>:ids (hash)
-- Returns  number of entries recorded
-- Errors   STALE_EPOCH
-- Events   none

local session = ARGV[1]
local s = read_hash(KEYS[1])
local bad = check_owner(s, ARGV[2], ARGV[3])
if bad then
  return bad
end

local function parts(id)
  local ms, serial = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(serial)
end

local last, recorded = s.last_applied, 0
for i = 4, #ARGV, 4 do
  local entry, id, rev, seq = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local ms, serial = parts(entry)
  local last_ms, last_serial = parts(last)
  if ms > last_ms or (ms == last_ms and serial > last_serial) then
    local record = {entry = entry, rev = tonumber(rev), seq = tonumber(seq)}
    if id ~= '' then
      record.id = id
      if redis.call('HEXISTS', key('ids', session), id) == 1 then
        redis.call('HSET', key('ids', session), id, entry .. ' ' .. rev .. ' ' .. seq)
      end
    end
    redis.call('RPUSH', key('applied', session), cjson.encode(record))
    last, recorded = entry, recorded + 1
  end
end
redis.call('HSET', KEYS[1], 'last_applied', last)
return recorded
