-- Redis lost a session, or its newest owner: the owner writes it again. The larger epoch wins. Idempotent.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  engine
-- ARGV[3]  epoch
-- ARGV[4]  left_age_ms: for how long nobody has controlled it, ms; '' while somebody does
-- ARGV[5]  position: newest entry of the input log that the engine has read, or '0-0'
-- ARGV[6]  JSON list of {entry, JSON Input, message id or ''}: the log from the checkpoint on
-- ARGV[7]  JSON list of AppliedRecord, in log order
-- ARGV[8…] field, value, … of the record
-- Derived  subject:<name> and controlled:<name> (sets), sessions (zset), queue:<model> (zset), engine:<id> (hash),
--          its placed and away (sets), session:<id>:inputs (stream), :applied (list), :ids (hash), :id_order (list)
-- Returns  1
-- Errors   STALE_EPOCH: closed, or another engine owns it at this or a newer epoch; ENGINE_UNKNOWN
-- Events   session_opened

local session, engine, epoch = ARGV[1], ARGV[2], ARGV[3]
local s = read_hash(KEYS[1])
if s and (s.phase == 'closed' or tonumber(s.epoch) > tonumber(epoch) or (s.epoch == epoch and s.engine ~= engine)) then
  return fail('STALE_EPOCH', engine .. ' does not own the session at epoch ' .. epoch)
end
local state = redis.call('HGET', key('engine', engine), 'state')
if not state or state == 'gone' then
  return fail('ENGINE_UNKNOWN', 'no record of engine ' .. engine)
end
if s and s.epoch == epoch then
  return 1
end

-- Of gateways the engine knows only the first: whoever is lost with that one would be the wrong session.
local now, record = now_ms(), {}
for i = 8, #ARGV, 2 do
  record[ARGV[i]] = ARGV[i + 1]
end
local controller_epoch = record.controller_epoch
if s then
  meter(session, s)
  controller_epoch = math.max(tonumber(controller_epoch), tonumber(s.controller_epoch))
  call_off(session, s)
  detach(session, s)
  redis.call('ZREM', key('queue', s.model), session)
end
redis.call('HSET', KEYS[1], 'phase', 'placed', 'opened', 1, 'reason', '', 'queue_order', 0, 'active_ms', now,
  'placed_ms', now, 'metered_ms', now, unpack(ARGV, 8))
redis.call('HSET', KEYS[1], 'controller_epoch', controller_epoch, 'gateway', s and s.gateway or '',
  'left_ms', ARGV[4] == '' and '' or string.format('%.0f', now - ARGV[4]))
redis.call('ZADD', key('sessions'), record.created_ms, session)
count_for_subject(session, record.subject or '', ARGV[4] == '')
redis.call('SADD', key('placed', engine), session)
if record.residence == 'offloaded' or record.residence == 'stored' then
  redis.call('SADD', key('away', engine), session)
end
count_placed(engine)

-- An entry that is there already, or older than one that is, is refused: pcall.
for _, input in ipairs(cjson.decode(ARGV[6])) do
  redis.pcall('XADD', key('inputs', session), input[1], 'm', input[2])
  if input[3] ~= '' and redis.call('HEXISTS', key('ids', session), input[3]) == 0 then
    remember(session, input[3], input[1])
  end
end
-- New entries must be newer than what the engine has read, though that is not kept.
if type(redis.pcall('XADD', key('inputs', session), ARGV[5], 'm', '')) == 'string' then
  redis.call('XDEL', key('inputs', session), ARGV[5])
end
redis.call('DEL', key('applied', session))
for _, applied in ipairs(cjson.decode(ARGV[7])) do
  redis.call('RPUSH', key('applied', session), cjson.encode(applied))
  if applied.id then
    local answer = applied.entry .. ' ' .. string.format('%.0f %.0f', applied.rev, applied.seq)
    if redis.call('HEXISTS', key('ids', session), applied.id) == 1 then
      redis.call('HSET', key('ids', session), applied.id, answer)
    else
      remember(session, applied.id, answer)
    end
  end
end
emit({type = 'session_opened', session = session, engine = engine, epoch = tonumber(epoch)})
return 1
