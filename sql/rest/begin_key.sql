-- begin_key: claims a key for the write that follows in this transaction.
-- in:     $1 text  whose key it is · $2 text  the key · $3 text  digest of what is asked
--         $4 bigint  lifetime of an answer, in milliseconds
-- out:    one row: is_new bool · is_same bool · answer text, of then
-- caller: rest/run.rs, as the login, before the transaction becomes the caller's
select k.is_new, k.is_same, k.answer
from walcast.begin_request($1, $2, $3, $4::bigint * interval '1 millisecond') as k;
