//! The models that there are, what they cost and how they are called: one data file, `models.json`.

use std::fmt;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::chat::provider::Usage;
use crate::error::Result;
use crate::http::validate::{Field, Invalid, Raw};

/// Who runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderId {
    /// OpenAI, or any server that speaks its Chat Completions.
    Openai,
    /// Anthropic.
    Anthropic,
    /// Google.
    Google,
}

impl ProviderId {
    /// All providers, in the order in which they stand in for each other.
    pub const ALL: [Self; 3] = [Self::Openai, Self::Anthropic, Self::Google];

    /// The provider's id.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Anthropic => "anthropic",
            Self::Google => "google",
        }
    }

    /// The name in OpenTelemetry's conventions
    /// (<https://opentelemetry.io/docs/specs/semconv/registry/attributes/gen-ai/>).
    #[must_use]
    pub const fn conventional_name(self) -> &'static str {
        match self {
            Self::Openai | Self::Anthropic => self.as_str(),
            Self::Google => "gcp.gemini",
        }
    }
}

impl fmt::Display for ProviderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Field for ProviderId {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        let text = raw.text()?;
        let known = Self::ALL.into_iter().find(|provider| provider.as_str() == text);
        known.ok_or_else(|| Invalid::new("unknown_value", "Must be openai, anthropic or google."))
    }
}

/// Which of OpenAI's interfaces a model speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// The interface that most servers speak.
    #[default]
    ChatCompletions,
    /// The only interface of some models.
    Responses,
}

/// A price, in micro-USD per million tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Price {
    Flat(i64),
    Tiered { base: i64, tiers: Vec<Tier> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tier {
    above_input_tokens: i64,
    price: i64,
}

impl Price {
    /// The price of every token of a request with so long an input.
    fn of(&self, input_tokens: i64) -> i64 {
        match self {
            Self::Flat(price) => *price,
            Self::Tiered { base, tiers } => {
                let passed = tiers.iter().filter(|tier| input_tokens > tier.above_input_tokens);
                passed.max_by_key(|tier| tier.above_input_tokens).map_or(*base, |tier| tier.price)
            }
        }
    }
}

/// What a model's tokens cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pricing {
    input: Price,
    #[serde(skip_serializing_if = "Option::is_none")]
    cached_input: Option<Price>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_write: Option<Price>,
    output: Price,
}

/// A model of the catalogue.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// The catalogue's id.
    pub id: String,
    /// Who runs it.
    pub provider: ProviderId,
    /// The name that people know.
    pub name: String,
    /// The provider's own id, where it is another one.
    sent_as: Option<String>,
    /// Tokens of prompt and answer together.
    pub context_window: i64,
    /// Tokens of the longest answer.
    pub max_output_tokens: i64,
    /// The interface that it speaks.
    #[serde(default)]
    pub api: Api,
    /// Whether it thinks first unless told otherwise: it is silent for longer, and its thoughts count as answer.
    #[serde(default)]
    pub reasoning: bool,
    /// Whether it refuses to be told how to choose words.
    #[serde(default)]
    pub fixed_sampling: bool,
    /// What it costs, if that is known.
    pub pricing: Option<Pricing>,
}

impl Model {
    /// The cost of a request in micro-USD, rounded once; `None` for a model without a price.
    #[must_use]
    pub fn cost(&self, usage: &Usage) -> Option<i64> {
        let pricing = self.pricing.as_ref()?;
        let price = |price: &Price| i128::from(price.of(usage.input_tokens));
        let input = price(&pricing.input);
        let cached = pricing.cached_input.as_ref().map_or(input, price);
        let written = pricing.cache_write.as_ref().map_or(input, price);
        let plain = (usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens).max(0);
        let total = i128::from(plain) * input
            + i128::from(usage.cached_input_tokens) * cached
            + i128::from(usage.cache_write_tokens) * written
            + i128::from(usage.output_tokens) * price(&pricing.output);
        i64::try_from((total + 500_000) / 1_000_000).ok()
    }
}

/// A model that a request will be sent to.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The catalogue's entry.
    pub model: &'static Model,
    /// The dated id that the client asked for, if it did.
    dated: Option<String>,
}

impl Choice {
    /// The id that the provider knows.
    #[must_use]
    pub fn sent_as(&self) -> &str {
        self.dated.as_deref().or(self.model.sent_as.as_deref()).unwrap_or(&self.model.id)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    price_version: String,
    defaults: Defaults,
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Defaults {
    openai: String,
    anthropic: String,
    google: String,
}

/// The catalogue.
pub struct Catalogue {
    file: File,
}

impl Catalogue {
    /// Reads the data file, once a process.
    ///
    /// # Errors
    /// When the file that was compiled in is malformed.
    pub fn get() -> Result<&'static Self> {
        static CATALOGUE: OnceLock<Catalogue> = OnceLock::new();
        if let Some(catalogue) = CATALOGUE.get() {
            return Ok(catalogue);
        }
        let file = serde_json::from_str(include_str!("models.json"))?;
        Ok(CATALOGUE.get_or_init(|| Self { file }))
    }

    /// All models.
    #[must_use]
    pub fn models(&self) -> &[Model] {
        &self.file.models
    }

    /// The version that a cost is noted with.
    #[must_use]
    pub fn price_version(&self) -> &str {
        &self.file.price_version
    }

    /// The model of an id, which may carry a date: `gpt-4o-2024-08-06` is a `gpt-4o`.
    #[must_use]
    pub fn find(&'static self, id: &str) -> Option<Choice> {
        if let Some(model) = self.exact(id) {
            return Some(Choice { model, dated: None });
        }
        let family = family(id);
        let model = (family != id).then(|| self.exact(family)).flatten().or_else(|| {
            // A family may be listed by its alias: claude-3-5-haiku-latest, claude-opus-4-0.
            self.models().iter().find(|model| {
                let alias = model.id.strip_suffix("-latest").or_else(|| model.id.strip_suffix("-0"));
                alias == Some(family)
            })
        })?;
        Some(Choice { model, dated: Some(id.to_owned()) })
    }

    fn exact(&'static self, id: &str) -> Option<&'static Model> {
        self.models().iter().find(|model| model.id == id)
    }

    /// The model that stands for a provider where none is named.
    #[must_use]
    pub fn default_of(&'static self, provider: ProviderId) -> Option<Choice> {
        let defaults = &self.file.defaults;
        self.find(match provider {
            ProviderId::Openai => &defaults.openai,
            ProviderId::Anthropic => &defaults.anthropic,
            ProviderId::Google => &defaults.google,
        })
    }
}

/// The id without its date or version: `-2024-08-06`, `-20241022`, `-0613`, `-001`, `-latest`.
fn family(id: &str) -> &str {
    if let Some(family) = id.strip_suffix("-latest") {
        return family;
    }
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = id.rsplitn(4, '-').collect();
    if let [day, month, year, family] = parts[..]
        && digits(year, 4)
        && digits(month, 2)
        && digits(day, 2)
    {
        return family;
    }
    match id.rsplit_once('-') {
        Some((family, version)) if [3, 4, 8].iter().any(|count| digits(version, *count)) => family,
        _ => id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(input: i64, cached: i64, written: i64, output: i64) -> Usage {
        Usage {
            input_tokens: input,
            cached_input_tokens: cached,
            cache_write_tokens: written,
            output_tokens: output,
            ..Usage::default()
        }
    }

    fn cost(model: &str, usage: &Usage) -> Option<i64> {
        Catalogue::get().unwrap().find(model).unwrap().model.cost(usage)
    }

    #[test]
    fn every_model_and_default_is_found() {
        let catalogue = Catalogue::get().unwrap();
        assert!(catalogue.models().iter().any(|model| model.id == "gpt-4"));
        for model in catalogue.models() {
            assert_eq!(catalogue.find(&model.id).unwrap().model.id, model.id);
            assert!(model.max_output_tokens <= model.context_window, "{}", model.id);
        }
        for provider in ProviderId::ALL {
            assert_eq!(catalogue.default_of(provider).unwrap().model.provider, provider);
        }
    }

    #[test]
    fn a_dated_id_is_of_its_family_and_sent_as_it_is() {
        let catalogue = Catalogue::get().unwrap();
        for (asked, family) in [
            ("gpt-4o-2024-08-06", "gpt-4o"),
            ("gpt-4-0613", "gpt-4"),
            ("gpt-3.5-turbo-0125", "gpt-3.5-turbo"),
            ("claude-3-5-sonnet-20241022", "claude-3-5-sonnet"),
            ("claude-3-5-haiku-20241022", "claude-3-5-haiku-latest"),
            ("claude-opus-4-20250514", "claude-opus-4-0"),
            ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
            ("gemini-2.0-flash-001", "gemini-2.0-flash"),
            ("gpt-4o-latest", "gpt-4o"),
        ] {
            let choice = catalogue.find(asked).unwrap_or_else(|| panic!("{asked}"));
            assert_eq!((choice.model.id.as_str(), choice.sent_as()), (family, asked));
        }
        assert_eq!(catalogue.find("claude-3-haiku").unwrap().sent_as(), "claude-3-haiku-20240307");
        for unknown in ["", "gpt-9", "gpt-4-x", "-2024-08-06", "2024-08-06"] {
            assert!(catalogue.find(unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn costs_are_exact_and_rounded_once() {
        // gpt-4o-mini: 150,000 in, 75,000 cached, 600,000 out, each per million.
        assert_eq!(cost("gpt-4o-mini", &usage(1_000, 400, 0, 100)), Some(180));
        assert_eq!(cost("gpt-4o-mini", &usage(3, 0, 0, 0)), Some(0));
        assert_eq!(cost("gpt-4o-mini", &usage(4, 0, 0, 0)), Some(1));
        // Claude 3 Opus: cache reads and writes have prices of their own.
        assert_eq!(cost("claude-3-opus-latest", &usage(1_000, 100, 200, 10)), Some(10_500 + 150 + 3_750 + 750));
    }

    #[test]
    fn a_tier_prices_the_whole_request() {
        let below = cost("gpt-5.6-luna", &usage(272_000, 0, 0, 1_000)).unwrap();
        let above = cost("gpt-5.6-luna", &usage(272_001, 0, 0, 1_000)).unwrap();
        assert_eq!(below, 272_000 + 6_000);
        assert_eq!(above, 544_002 + 9_000);
    }
}
