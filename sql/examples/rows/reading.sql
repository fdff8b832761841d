-- rows of reading: something that alice did. For `walcast dev`, once.
insert into reading.activity_stream (user_id, activity_type, metadata)
  values ('00000000-0000-4000-8000-00000000000a', 'book_started', '{"title": "A book"}');
