-- Begin to move a placed session with its state. It stays its owner's until the owner commits.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  engine, the target
-- ARGV[3]  expect_epoch: the epoch that the plan saw
-- ARGV[4]  term of the leader
-- ARGV[5]  migration_id
-- ARGV[6]  limit_ms: without a commit it is called off after so long, ms
-- ARGV[7]  waiting_limit_ms: the same of one that makes no chunks meanwhile, ms
-- Derived  engine:<id> (hash) and engine:<id>:commands (stream) of both engines, engine:<id>:arriving (hash)
-- Returns  1
-- Errors   STALE_TERM, REFUSED
-- Events   session_changed; commands: migrate to the source, receive to the target

local session, target, id = ARGV[1], ARGV[2], ARGV[5]
local bad = check_term(ARGV[4])
if bad then
  return bad
end
local s = read_hash(KEYS[1])
if not s or s.phase ~= 'placed' or s.epoch ~= ARGV[3] then
  return fail('REFUSED', 'the session is not placed at epoch ' .. ARGV[3])
end
bad = check_not_in_flight(s)
if bad then
  return bad
end
if tonumber(s.failed_moves or 0) >= MAX_FAILED_MOVES then
  return fail('REFUSED', 'its migrations were called off ' .. s.failed_moves .. ' times')
end
if s.engine == target then
  return fail('REFUSED', 'the session is there already')
end
if s.residence ~= 'resident' and s.residence ~= 'offloaded' then
  return fail('REFUSED', 'there is no state to move: the session is ' .. s.residence)
end
local from, to = read_hash(key('engine', s.engine)), read_hash(key('engine', target))
if not to or to.state ~= 'ready' then
  return fail('REFUSED', target .. ' is not ready')
end
if not from or not have_equal_models(from, to) then
  return fail('REFUSED', target .. ' has another model, or other weights')
end
if (from.transfer or '') == '' or (to.transfer or '') == '' then
  return fail('REFUSED', 'an engine of several GPUs can not migrate sessions')
end
local takes_slot = s.residence == 'resident'
if (takes_slot or s.active == '1') and count_residents(target) >= tonumber(to.capacity) then
  return fail('REFUSED', target .. ' is full')
end

local limit_ms = tonumber(ARGV[6])
if s.active == '1' and not takes_slot then
  limit_ms = math.min(limit_ms, tonumber(ARGV[7]))
end
redis.call('HSET', KEYS[1], 'flight_id', id, 'flight_to', target,
  'flight_deadline_ms', string.format('%.0f', now_ms() + limit_ms), 'move_to', '')
-- One that is active comes with a claim to a slot, wherever its state is now.
redis.call('HSET', key('arriving', target), session, (takes_slot or s.active == '1') and 1 or 0)
local epoch = tonumber(s.epoch)
command(target, {type = 'receive', session = session, epoch = epoch, migration_id = id, engine = s.engine,
  takes_slot = takes_slot, limit_ms = limit_ms})
command(s.engine, {type = 'migrate', session = session, epoch = epoch, migration_id = id, engine = target,
  address = to.transfer, limit_ms = limit_ms})
emit({type = 'session_changed', session = session, active = s.active == '1'})
return 1
