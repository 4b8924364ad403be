-- The owner names a newer checkpoint, whose bytes are here or were put elsewhere before. What was applied in it
-- is not needed in the logs any more.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  engine
-- ARGV[3]  epoch
-- ARGV[4]  seq: the first chunk that is not in it
-- ARGV[5]  last_applied: newest entry of the input log that is in it
-- ARGV[6]  base: JSON, the prompt in force
-- ARGV[7]  size, bytes
-- ARGV[8]  ttl, s: how long the bytes are kept here
-- ARGV[9]  the bytes, or '' when they are elsewhere
-- Derived  session:<id>:checkpoint (hash), checkpoint:<object> (string), checkpoint_expiry (zset),
--          checkpoint_sizes (hash), checkpoint_total (string), session:<id>:inputs (stream),
--          session:<id>:applied (list)
-- Returns  name of the object that is not needed any more: the one before, or this one when a newer one is
--          named already; '' for none
-- Errors   STALE_EPOCH, CHECKPOINTS_FULL
-- Events   none

local session, epoch, seq, last_applied, data = ARGV[1], ARGV[3], ARGV[4], ARGV[5], ARGV[9]
local bad = check_owner(read_hash(KEYS[1]), ARGV[2], epoch)
if bad then
  return bad
end
local object = session .. ':' .. epoch .. ':' .. seq
local before = read_hash(key('checkpoint', session))
if before and before.epoch == epoch and tonumber(before.seq) >= tonumber(seq) then
  return before.seq == seq and '' or object
end
local before_object = before and session .. ':' .. before.epoch .. ':' .. before.seq or ''

local now = now_ms()
for _, expired in ipairs(redis.call('ZRANGEBYSCORE', key('checkpoint_expiry'), '-inf', now)) do
  drop_checkpoint_bytes(expired, expired .. ':')
end
if #data > 0 then
  local own = tonumber(redis.call('HGET', key('checkpoint_sizes'), session) or 0)
  local total = tonumber(redis.call('GET', key('checkpoint_total')) or 0)
  if #data > MAX_CHECKPOINT_BYTES or total - own + #data > MAX_CHECKPOINT_TOTAL_BYTES then
    return fail('CHECKPOINTS_FULL', 'no room for a checkpoint of ' .. #data .. ' bytes next to ' .. total)
  end
end
drop_checkpoint_bytes(session, before_object)
if #data > 0 then
  redis.call('SET', key('checkpoint_data', object), data, 'EX', ARGV[8])
  redis.call('HSET', key('checkpoint_sizes'), session, #data)
  redis.call('INCRBY', key('checkpoint_total'), #data)
  redis.call('ZADD', key('checkpoint_expiry'), now + ARGV[8] * 1000, session)
end
redis.call('HSET', key('checkpoint', session), 'epoch', epoch, 'seq', seq, 'last_applied', last_applied,
  'base', ARGV[6], 'size', ARGV[7])

redis.call('XTRIM', key('inputs', session), 'MINID', last_applied)
local function order(id)
  local ms, serial = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(serial)
end
local last_ms, last_serial = order(last_applied)
local applied = key('applied', session)
while redis.call('LLEN', applied) > MIN_APPLIED_KEPT do
  local ms, serial = order(cjson.decode(redis.call('LINDEX', applied, 0)).entry)
  if ms > last_ms or (ms == last_ms and serial > last_serial) then
    break
  end
  redis.call('LPOP', applied)
end
return before_object
