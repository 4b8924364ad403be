-- The owner publishes progress.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  engine
-- ARGV[3]  epoch
-- ARGV[4]  active, 0 or 1
-- ARGV[5]  next_seq, chunks
-- ARGV[6]  next_frame, pixel frames
-- ARGV[7]  rev
-- ARGV[8]  slack_ms, ms
-- ARGV[9]  residence
-- ARGV[10] engine_ms: compute time of what was made under this epoch, ms
-- ARGV[11] media_bytes made under this epoch
-- ARGV[12] asks_slot, 0 or 1: it waits for a slot. One that was granted meanwhile is not taken back
-- Derived  engine:<id>:away (set)
-- Returns  1
-- Errors   STALE_EPOCH
-- Events   session_changed, only when active or residence changes

local s = read_hash(KEYS[1])
local bad = check_owner(s, ARGV[2], ARGV[3])
if bad then
  return bad
end
meter(ARGV[1], s)
count_made(ARGV[1], s, ARGV[10], ARGV[11])
redis.call('HSET', KEYS[1], 'active', ARGV[4], 'next_seq', ARGV[5], 'next_frame', ARGV[6], 'rev', ARGV[7],
  'slack_ms', ARGV[8])
if s.active == '1' or ARGV[4] == '1' then
  redis.call('HSET', KEYS[1], 'active_ms', now_ms())
end
local is_new = s.active ~= ARGV[4]
s.active = ARGV[4]
local before, after = s.residence, ARGV[9]
if ARGV[12] == '1' and before == 'resident' then
  after = before
end
set_residence(ARGV[1], s, after)
if is_new and before == after then
  emit({type = 'session_changed', session = ARGV[1], active = ARGV[4] == '1'})
end
return 1
