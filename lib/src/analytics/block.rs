//! Events as one block in ClickHouse's Native format: columns with their names and types, so that a block
//! written before a migration can still be inserted after it.

use crate::analytics::event::{Event, Field};

/// The rows of one insert into `events`.
#[must_use]
pub fn encode(events: &[&Event<'_>], ingested_at: i64) -> Vec<u8> {
    let mut block = Block { events, columns: 0, out: Vec::with_capacity(events.len() * 256) };
    block.fixed("id", "UInt128", |event, out| out.extend_from_slice(&event.id.to_le_bytes()));
    block.text("type", |event| &event.kind);
    block.text("subject", |event| &event.subject);
    block.fixed("time", "DateTime64(3, 'UTC')", |event, out| out.extend_from_slice(&event.time.to_le_bytes()));
    block.text("source", |event| &event.source);
    block.text("traceparent", |event| &event.traceparent);
    block.fixed("ingested_at", "DateTime64(3, 'UTC')", |_, out| out.extend_from_slice(&ingested_at.to_le_bytes()));
    block.fixed("clamped", "Bool", |event, out| out.push(event.clamped.into()));
    block.text("plan", |event| event.text(Field::Plan));
    block.upper("country", Field::Country);
    block.text("method", |event| event.text(Field::Method));
    block.text("from_plan", |event| event.text(Field::FromPlan));
    block.text("to_plan", |event| event.text(Field::ToPlan));
    block.lower("conversation_id", Field::ConversationId);
    block.lower("message_id", Field::MessageId);
    block.text("provider", |event| event.text(Field::Provider));
    block.text("model", |event| event.text(Field::Model));
    block.text("requested_model", |event| event.text(Field::RequestedModel));
    block.integer("input_tokens", Field::InputTokens);
    block.integer("cached_input_tokens", Field::CachedInputTokens);
    block.integer("output_tokens", Field::OutputTokens);
    block.integer("reasoning_tokens", Field::ReasoningTokens);
    block.nullable("cost_micro_usd", Field::CostMicroUsd);
    block.text("price_version", |event| event.text(Field::PriceVersion));
    block.nullable("ttft_ms", Field::TtftMs);
    block.integer("latency_ms", Field::LatencyMs);
    block.text("finish_reason", |event| event.text(Field::FinishReason));
    block.integer("attempts", Field::Attempts);
    block.text("fallback_from", |event| event.text(Field::FallbackFrom));
    block.bool("streamed", Field::Streamed);
    block.bool("regenerated", Field::Regenerated);
    block.text("error_class", |event| event.text(Field::ErrorClass));
    block.lower("payment_id", Field::PaymentId);
    block.lower("invoice_id", Field::InvoiceId);
    block.integer("amount_minor", Field::AmountMinor);
    block.upper("currency", Field::Currency);
    block.text("decline_code", |event| event.text(Field::DeclineCode));
    block.lower("subscription_id", Field::SubscriptionId);
    block.text("subscription_status", |event| event.text(Field::Status));
    block.text("movement", |event| event.text(Field::Movement));
    block.integer("mrr_delta_minor", Field::MrrDeltaMinor);
    block.text("function", |event| event.text(Field::Function));
    block.text("route", |event| event.text(Field::Route));
    block.integer("http_status", Field::Status);
    block.integer("duration_ms", Field::DurationMs);
    block.bool("cold_start", Field::ColdStart);
    block.finish()
}

struct Block<'a> {
    events: &'a [&'a Event<'a>],
    columns: u64,
    out: Vec<u8>,
}

impl Block<'_> {
    fn fixed(&mut self, name: &str, kind: &str, write: impl Fn(&Event<'_>, &mut Vec<u8>)) {
        self.columns += 1;
        put_text(&mut self.out, name);
        put_text(&mut self.out, kind);
        for event in self.events {
            write(event, &mut self.out);
        }
    }

    fn text(&mut self, name: &str, of: impl for<'e> Fn(&'e Event<'_>) -> &'e str) {
        self.fixed(name, "String", |event, out| put_text(out, of(event)));
    }

    /// Text that is compared without regard to case.
    fn lower(&mut self, name: &str, field: Field) {
        self.fixed(name, "String", |event, out| put_text(out, &event.text(field).to_lowercase()));
    }

    fn upper(&mut self, name: &str, field: Field) {
        self.fixed(name, "String", |event, out| put_text(out, &event.text(field).to_uppercase()));
    }

    fn integer(&mut self, name: &str, field: Field) {
        self.fixed(name, "Int64", |event, out| put_integer(out, event.integer(field)));
    }

    fn bool(&mut self, name: &str, field: Field) {
        self.fixed(name, "Bool", |event, out| out.push(event.is(field).into()));
    }

    fn nullable(&mut self, name: &str, field: Field) {
        self.columns += 1;
        put_text(&mut self.out, name);
        put_text(&mut self.out, "Nullable(Int64)");
        self.out.extend(self.events.iter().map(|event| u8::from(event.integer(field).is_none())));
        for event in self.events {
            put_integer(&mut self.out, event.integer(field));
        }
    }

    fn finish(self) -> Vec<u8> {
        let mut block = Vec::with_capacity(self.out.len() + 8);
        put_length(&mut block, self.columns);
        put_length(&mut block, self.events.len() as u64);
        block.extend_from_slice(&self.out);
        block
    }
}

fn put_integer(out: &mut Vec<u8>, value: Option<i64>) {
    out.extend_from_slice(&value.unwrap_or_default().to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_length(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// LEB128, as ClickHouse writes lengths.
fn put_length(out: &mut Vec<u8>, mut length: u64) {
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_leb128() {
        let mut out = Vec::new();
        put_length(&mut out, 127);
        put_length(&mut out, 300);
        assert_eq!(out, [0x7f, 0xac, 0x02]);
    }
}
