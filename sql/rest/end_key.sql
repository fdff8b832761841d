-- end_key: keeps what the write was answered with.
-- in:     $1 text  whose key it is · $2 text  the key · $3 text  the answer
-- out:    one row that says nothing
-- caller: rest/run.rs, as the login, after the statement
select walcast.end_request($1, $2, $3);
