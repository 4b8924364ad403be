-- Read hashes as one text: a twentieth of the work for the reader that as many replies would be.
--
-- KEYS     the hashes, at least one
-- Returns  JSON list of objects in the order of KEYS, {} for a hash that does not exist
-- Events   none

local found = {}
for at, name in ipairs(KEYS) do
  found[at] = read_hash(name) or {}
end
return cjson.encode(found)
