-- Read the members of a sorted set as one text, as `read_hashes` does, in order.
--
-- KEYS[1]  sorted set
-- Returns  JSON list of strings; {} when there are none
-- Events   none

return cjson.encode(redis.call('ZRANGE', KEYS[1], 0, -1))
