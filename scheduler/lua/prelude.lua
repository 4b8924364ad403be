-- Parts that every script shares. Rendered before it from Python: KEY, SESSION_MOVES, ENGINE_MOVES and bounds.
--
-- KEYS[1] of every script is the hash of its subject. Other keys are built with key(), below the same prefix
-- and so with the same hash tag; each script's header names them.
-- A script checks everything before it writes anything: an error reply means that nothing was changed.

local PREFIX = string.match(KEYS[1], '^.-}:')

local function key(name, id)
  return PREFIX .. string.format(KEY[name], id)
end

-- Server time, ms. The only clock.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function fail(code, text)
  return redis.error_reply(code .. ' ' .. (text or ''))
end

-- Hash as a table; nil when it does not exist.
local function read_hash(name)
  local flat = redis.call('HGETALL', name)
  if #flat == 0 then
    return nil
  end
  local hash = {}
  for i = 1, #flat, 2 do
    hash[flat[i]] = flat[i + 1]
  end
  return hash
end

local function emit(event)
  redis.call('XADD', key('events'), 'MAXLEN', '~', MAX_EVENTS, '*', 'm', cjson.encode(event))
end

-- An engine that is gone has no stream any more, and must not get a new one that nobody deletes.
local function command(engine, message)
  local state = redis.call('HGET', key('engine', engine), 'state')
  if not state or state == 'gone' then
    return
  end
  redis.call('XADD', key('commands', engine), 'MAXLEN', '~', MAX_COMMANDS, '*', 'm', cjson.encode(message))
end

-- Error reply unless `term` is in force.
local function check_term(term)
  if redis.call('HGET', key('lease'), 'term') ~= term then
    return fail('STALE_TERM', 'term ' .. term .. ' is not in force: another scheduler leads or the lease ended')
  end
end

-- Error reply unless `engine` owns the session at `epoch`. `s`: its hash or nil.
local function check_owner(s, engine, epoch)
  if not s or s.phase ~= 'placed' or s.engine ~= engine or s.epoch ~= epoch then
    return fail('STALE_EPOCH', engine .. ' does not own the session at epoch ' .. epoch)
  end
end

-- Error reply while the session migrates: until that ends it can be given nothing else to do.
local function check_not_in_flight(s)
  if s.flight_id then
    return fail('REFUSED', 'the session is being migrated to ' .. s.flight_to)
  end
end

-- Error reply unless the session exists, is open and controller_epoch controls it (0: anybody may). A newer one
-- than is known does: Redis lost its attach.
local function check_controller(s, controller_epoch)
  if not s then
    return fail('NO_SUCH_SESSION', 'no such session')
  end
  if s.phase == 'closed' then
    return fail('SESSION_CLOSED', s.reason)
  end
  if controller_epoch ~= '0' and tonumber(s.controller_epoch) > tonumber(controller_epoch) then
    return fail('STALE_CONTROLLER', 'a newer connection controls the session')
  end
end

-- The connection that writes holds control from now on, should Redis have lost its attach.
local function hold_control(session, s, controller_epoch)
  if tonumber(controller_epoch) > tonumber(s.controller_epoch) then
    redis.call('HSET', key('session', session), 'controller_epoch', controller_epoch)
  end
end

-- Count the time since the last look for who pays: as active, placed and wanting chunks; as resident, in a slot.
-- To be called before phase, active or residence changes.
local function meter(session, s)
  local now = now_ms()
  local passed = now - tonumber(s.metered_ms or now)
  if s.phase == 'placed' and passed > 0 then
    if s.active == '1' then
      redis.call('HINCRBY', key('session', session), 'used_active_ms', passed)
    end
    if s.residence == 'resident' or s.residence == 'leaving' then
      redis.call('HINCRBY', key('session', session), 'used_resident_ms', passed)
    end
  end
  s.metered_ms = now
  redis.call('HSET', key('session', session), 'metered_ms', now)
end

-- What the owner has made of a session since it owns it. Of earlier owners the sums are kept.
local function count_made(session, s, engine_ms, bytes)
  local hash = key('session', session)
  if s.used_epoch ~= s.epoch then
    redis.call('HINCRBY', hash, 'used_engine_ms', s.epoch_engine_ms or 0)
    redis.call('HINCRBY', hash, 'used_bytes', s.epoch_bytes or 0)
  end
  redis.call('HSET', hash, 'used_epoch', s.epoch, 'epoch_engine_ms', engine_ms, 'epoch_bytes', bytes)
end

-- The single setter of a session's phase: writes `fields` and the phase that SESSION_MOVES names.
-- The caller has checked that the move is legal.
local function move_session(session, s, move, fields)
  local phase = SESSION_MOVES[s.phase][move]
  meter(session, s)
  redis.call('HSET', key('session', session), 'phase', phase, unpack(fields))
  s.phase = phase
end

-- The single setter of an engine's state. The caller has checked that the move is legal.
local function move_engine(engine, e, move)
  e.state = ENGINE_MOVES[e.state][move]
  redis.call('HSET', key('engine', engine), 'state', e.state)
end

-- Have two engines models, JSON ModelInfo, that are equal in all that both say? An engine of another version may
-- say more. Only then one can take a state from the other.
local function have_equal_models(one, other)
  if one.model == '' or other.model == '' then
    return false
  end
  local theirs = cjson.decode(other.model)
  for name, value in pairs(cjson.decode(one.model)) do
    if theirs[name] ~= nil and theirs[name] ~= value then
      return false
    end
  end
  return true
end

local function count_placed(engine)
  redis.call('HSET', key('engine', engine), 'sessions', redis.call('SCARD', key('placed', engine)))
end

-- Remember a client's message id with what answers a repeat of it; the oldest of too many is forgotten.
local function remember(session, id, answer)
  redis.call('HSET', key('ids', session), id, answer)
  if redis.call('RPUSH', key('id_order', session), id) > MAX_REMEMBERED_IDS then
    redis.call('HDEL', key('ids', session), redis.call('LPOP', key('id_order', session)))
  end
end

-- Sessions that hold a slot of an engine, are entitled to one, or are on their way to one: what its capacity
-- limits.
local function count_residents(engine)
  local count = redis.call('SCARD', key('placed', engine)) - redis.call('SCARD', key('away', engine))
  for _, takes_slot in ipairs(redis.call('HVALS', key('arriving', engine))) do
    count = count + takes_slot
  end
  return count
end

-- The session's migration is over, committed or not: forget it.
local function land(session, s)
  redis.call('HDEL', key('session', session), 'flight_id', 'flight_to', 'flight_deadline_ms')
  redis.call('HDEL', key('arriving', s.flight_to), session)
  s.flight_id = nil
end

-- Call the session's migration off, if there is one: its target is told, its source keeps it.
local function call_off(session, s)
  if s.flight_id then
    command(s.flight_to, {type = 'cancel_migration', session = session, epoch = tonumber(s.epoch),
      migration_id = s.flight_id})
    land(session, s)
  end
end

-- Say where the state of a placed session is. Tells the leader if that is news.
local function set_residence(session, s, residence)
  meter(session, s)
  if residence == 'offloaded' or residence == 'stored' then
    redis.call('SADD', key('away', s.engine), session)
  else
    redis.call('SREM', key('away', s.engine), session)
  end
  redis.call('HSET', key('session', session), 'residence', residence)
  if s.residence ~= residence then
    s.residence = residence
    emit({type = 'session_changed', session = session, active = s.active == '1'})
  end
end

-- Take a session from its engine's set, if it has an engine whose record still exists.
local function detach(session, s)
  if s.engine ~= '' then
    redis.call('SREM', key('placed', s.engine), session)
    redis.call('SREM', key('away', s.engine), session)
    if redis.call('EXISTS', key('engine', s.engine)) == 1 then
      count_placed(s.engine)
    end
  end
end

-- Next place in a queue: starts count up from zero, returners lie 2^52 below, in front of every start.
local function enqueue(session, model, is_returner)
  local order = redis.call('INCR', key('serial'))
  if is_returner then
    order = order - 4503599627370496
  end
  local text = string.format('%.0f', order)
  redis.call('ZADD', key('queue', model), text, session)
  redis.call('SADD', key('queued_models'), model)
  return text
end

-- A session counts against the quota of whom it belongs to, '' for nobody, until it is closed; while somebody
-- controls it, also where places are given by subject in turn.
local function count_for_subject(session, subject, is_controlled)
  if subject ~= '' then
    redis.call('SADD', key('subject', subject), session)
    redis.call(is_controlled and 'SADD' or 'SREM', key('controlled', subject), session)
  end
end

-- Nobody controls the session from now on. If it is queued it leaves the line; its order is kept.
local function leave(session, s)
  redis.call('HSET', key('session', session), 'left_ms', now_ms())
  count_for_subject(session, s.subject or '', false)
  if s.phase == 'queued' then
    redis.call('ZREM', key('queue', s.model), session)
  end
  emit({type = 'session_left', session = session})
end

-- A connection at `gateway` controls the session from now on. If it is queued it is in the line again.
local function come_back(session, s, gateway)
  redis.call('HSET', key('session', session), 'gateway', gateway, 'left_ms', '')
  count_for_subject(session, s.subject or '', true)
  if s.phase == 'queued' then
    redis.call('ZADD', key('queue', s.model), s.queue_order, session)
  end
  emit({type = 'controller_changed', session = session, controller_epoch = tonumber(s.controller_epoch),
    gateway = gateway})
end

-- Sessions of a subject in a model's queue.
local function count_waiting(model, subject)
  local number = 0
  for _, session in ipairs(redis.call('SMEMBERS', key('controlled', subject))) do
    if redis.call('ZSCORE', key('queue', model), session) then
      number = number + 1
    end
  end
  return number
end

-- Write the record of a session that never had an owner, and put it in the queue. `facts`: what is its own.
local function put_queued(session, model, facts)
  local order = enqueue(session, model, false)
  redis.call('HSET', key('session', session), 'model', model, 'phase', 'queued', 'epoch', 0, 'engine', '',
    'opened', 0, 'active', 1, 'paused', 0, 'seed', facts.seed, 'lead_ms', facts.lead_ms, 'codec', facts.codec,
    'resume_hash', facts.resume_hash, 'controller_epoch', 1, 'gateway', facts.gateway, 'next_seq', 0,
    'next_frame', 0, 'rev', 0, 'last_applied', '0-0', 'slack_ms', 0, 'created_ms', facts.created_ms,
    'active_ms', facts.created_ms, 'reason', '', 'queue_order', order, 'left_ms', '', 'residence', 'stored',
    'subject', facts.subject)
  redis.call('ZADD', key('sessions'), facts.created_ms, session)
  count_for_subject(session, facts.subject, true)
end

-- A placed session loses its owner and waits at the front of the queue.
-- One whose connection left keeps its order but no place in the line: nobody waits.
local function requeue(session, s, reason)
  call_off(session, s)
  detach(session, s)
  local order = enqueue(session, s.model, true)
  if s.left_ms ~= '' then
    redis.call('ZREM', key('queue', s.model), session)
  end
  move_session(session, s, 'requeue', {'epoch', s.epoch + 1, 'engine', '', 'opened', 0, 'reason', reason,
    'queue_order', order})
  emit({type = 'session_queued', session = session, reason = reason})
end

-- The bytes of a session's checkpoint leave the control Redis, and the books.
local function drop_checkpoint_bytes(session, object)
  redis.call('DEL', key('checkpoint_data', object))
  local size = redis.call('HGET', key('checkpoint_sizes'), session)
  if size then
    redis.call('DECRBY', key('checkpoint_total'), size)
    redis.call('HDEL', key('checkpoint_sizes'), session)
    redis.call('ZREM', key('checkpoint_expiry'), session)
  end
end

local function drop_checkpoint(session)
  local c = read_hash(key('checkpoint', session))
  if c then
    drop_checkpoint_bytes(session, session .. ':' .. c.epoch .. ':' .. c.seq)
    redis.call('DEL', key('checkpoint', session))
  end
end

-- What a session has used, once, in the very step that closes it.
local function record_usage(session, reason)
  local s = read_hash(key('session', session))
  redis.call('XADD', key('usage'), 'MAXLEN', '~', MAX_USAGE, '*', 'm', cjson.encode({type = 'usage',
    session = session, subject = s.subject or '', model = s.model, reason = reason,
    created_ms = tonumber(s.created_ms), closed_ms = now_ms(),
    active_ms = tonumber(s.used_active_ms or 0), resident_ms = tonumber(s.used_resident_ms or 0),
    engine_ms = (s.used_engine_ms or 0) + (s.epoch_engine_ms or 0),
    media_bytes = (s.used_bytes or 0) + (s.epoch_bytes or 0),
    chunks = tonumber(s.next_seq), frames = tonumber(s.next_frame)}))
end

-- Close an open session. `closer` is the engine that does it, '' for anybody else; an owner is told otherwise.
local function close(session, s, reason, closer)
  call_off(session, s)
  detach(session, s)
  redis.call('ZREM', key('queue', s.model), session)
  redis.call('ZREM', key('sessions'), session)
  if s.subject and s.subject ~= '' then
    redis.call('SREM', key('subject', s.subject), session)
    redis.call('SREM', key('controlled', s.subject), session)
  end
  drop_checkpoint(session)
  redis.call('DEL', key('inputs', session), key('applied', session), key('ids', session), key('id_order', session))
  if s.engine ~= '' and s.engine ~= closer then
    command(s.engine, {type = 'close', session = session, reason = reason})
  end
  move_session(session, s, 'close', {'engine', '', 'active', 0, 'reason', reason})
  record_usage(session, reason)
  local retain_s = tonumber(redis.call('HGET', key('cluster'), 'retain_s')) or CLOSED_TTL_S
  redis.call('EXPIRE', key('session', session), math.max(retain_s, MIN_CLOSED_TTL_S))
  emit({type = 'session_closed', session = session, reason = reason})
end

-- Ids of the sessions that an engine computed for when it ended: any of them may be why. Where it had served one for
-- long, what was before is forgotten.
local function find_suspects(sessions)
  local suspects = {}
  for _, entry in ipairs(sessions) do
    local s = entry.hash
    local is_resident = s.residence == 'resident'
    if is_resident then
      suspects[#suspects + 1] = entry.id
    end
    if not is_resident or now_ms() - tonumber(s.placed_ms or 0) >= POISON_MS then
      redis.call('HSET', key('session', entry.id), 'strikes', 0)
    end
  end
  return suspects
end

-- An engine crashed with these sessions. Returns which are poison: ids as keys.
local function strike(suspects)
  local again, poison = {}, {}
  for _, session in ipairs(suspects) do
    local strikes = redis.call('HINCRBY', key('session', session), 'strikes', 1)
    if strikes >= POISON_STRIKES then
      again[#again + 1] = session
    end
    poison[session] = strikes >= SHARED_POISON_STRIKES
  end
  if #again == 1 then
    poison[again[1]] = true
  end
  return poison
end

-- An engine is gone: its sessions wait at the front of their queue, oldest first. Returns their ids.
-- `crashed`: by its own fault; a session that is the cause is closed rather than given to the next. An engine that
-- was killed, or can't be heard, says nothing about its sessions; that it crashed may be told later.
local function retire(engine, e, reason, crashed)
  local sessions = {}
  for _, session in ipairs(redis.call('SMEMBERS', key('placed', engine))) do
    local s = read_hash(key('session', session))
    if s and s.engine == engine and s.phase == 'placed' then
      sessions[#sessions + 1] = {id = session, hash = s, created = tonumber(s.created_ms)}
    end
  end
  table.sort(sessions, function(a, b)
    return a.created < b.created or (a.created == b.created and a.id < b.id)
  end)
  local suspects = find_suspects(sessions)
  local ids, poison = {}, crashed and strike(suspects) or {}
  for _, entry in ipairs(sessions) do
    if poison[entry.id] then
      close(entry.id, entry.hash, 'engine_crashed', engine)
    else
      requeue(entry.id, entry.hash, 'engine_lost')
      ids[#ids + 1] = entry.id
    end
  end
  for _, session in ipairs(redis.call('HKEYS', key('arriving', engine))) do
    local s = read_hash(key('session', session))
    if s and s.flight_to == engine then
      command(s.engine, {type = 'cancel_migration', session = session, epoch = tonumber(s.epoch),
        migration_id = s.flight_id})
      land(session, s)
      emit({type = 'session_changed', session = session, active = s.active == '1'})
    end
  end
  move_engine(engine, e, 'lose')
  if not crashed and #suspects > 0 then
    redis.call('HSET', key('engine', engine), 'suspects', cjson.encode(suspects))
  end
  redis.call('ZREM', key('engines'), engine)
  redis.call('DEL', key('placed', engine), key('away', engine), key('arriving', engine), key('commands', engine))
  redis.call('EXPIRE', key('engine', engine), GONE_TTL_S)
  emit({type = 'engine_changed', engine = engine, state = 'gone', reason = reason})
  return ids
end
