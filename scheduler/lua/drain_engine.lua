-- No new sessions for this engine. Idempotent.
--
-- KEYS[1]  engine:<id> (hash)
-- ARGV[1]  engine
-- ARGV[2]  term of the leader
-- ARGV[3]  reason
-- Derived  engine:<id>:commands (stream)
-- Returns  1 drains from now, 0 did before
-- Errors   STALE_TERM, REFUSED
-- Events   engine_changed; command: drain

local bad = check_term(ARGV[2])
if bad then
  return bad
end
local e = read_hash(KEYS[1])
if not e or not ENGINE_MOVES[e.state]['drain'] then
  return fail('REFUSED', ARGV[1] .. ' is not ready')
end
if e.state == 'draining' then
  return 0
end
move_engine(ARGV[1], e, 'drain')
command(ARGV[1], {type = 'drain'})
emit({type = 'engine_changed', engine = ARGV[1], state = e.state, reason = ARGV[3]})
return 1
