//! Server-sent events, as bytes arrive: https://html.spec.whatwg.org/multipage/server-sent-events.html

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// The `event` field; empty where there is none.
    pub name: String,
    /// The `data` lines, joined.
    pub data: String,
}

/// Cuts a byte stream into events, wherever its pieces begin and end.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    after_carriage_return: bool,
    started: bool,
    name: String,
    data: String,
    has_data: bool,
}

impl Parser {
    /// Takes the next bytes; gives the events that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<SseEvent> {
        let mut events = Vec::new();
        for &byte in bytes {
            let second_of_pair = byte == b'\n' && std::mem::take(&mut self.after_carriage_return);
            self.after_carriage_return = byte == b'\r';
            match byte {
                b'\n' if second_of_pair => {}
                b'\n' | b'\r' => events.extend(self.end_line()),
                _ => self.line.push(byte),
            }
        }
        events
    }

    /// Takes the end of the stream. The standard drops what no blank line ended; providers leave that line out.
    pub fn finish(&mut self) -> Option<SseEvent> {
        if !self.line.is_empty()
            && let Some(event) = self.end_line()
        {
            return Some(event);
        }
        self.dispatch()
    }

    fn end_line(&mut self) -> Option<SseEvent> {
        let bytes = std::mem::take(&mut self.line);
        let bytes = if self.started { &bytes[..] } else { bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes) };
        self.started = true;
        if bytes.is_empty() {
            return self.dispatch();
        }
        let line = String::from_utf8_lossy(bytes);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.has_data = true;
            }
            // Comments (an empty field), ids and retry times mean nothing here.
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<SseEvent> {
        let event = SseEvent { name: std::mem::take(&mut self.name), data: std::mem::take(&mut self.data) };
        std::mem::take(&mut self.has_data).then_some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<(String, String)> {
        let mut parser = Parser::default();
        let mut events: Vec<_> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
        events.extend(parser.finish());
        events.into_iter().map(|event| (event.name, event.data)).collect()
    }

    #[test]
    fn reads_every_form_of_line_at_every_split() {
        let stream = "\u{feff}: ping\r\n\r\nevent: a\r\ndata: one\r\ndata:two\r\rdata: é😀\n\nid: 7\n\nevent: b\ndata\n\ndata: last";
        let expected = [("a", "one\ntwo"), ("", "é😀"), ("b", ""), ("", "last")];
        let expected: Vec<_> = expected.iter().map(|(n, d)| ((*n).to_owned(), (*d).to_owned())).collect();
        let bytes = stream.as_bytes();
        for split in 0..=bytes.len() {
            assert_eq!(parse(&[&bytes[..split], &bytes[split..]]), expected, "split at {split}");
        }
        let single: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(parse(&single), expected);
    }

    #[test]
    fn an_event_without_data_is_none() {
        assert_eq!(parse(&[b"event: ping\n\n: c\n\n"]), []);
    }
}
