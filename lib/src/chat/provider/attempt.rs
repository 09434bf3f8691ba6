//! Getting an answer begun: retries while nothing was sent on, then the next provider.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::Instant;
use tracing::{debug_span, field};

use crate::chat::catalogue::{Catalogue, Choice, ProviderId};
use crate::chat::prompt;
use crate::chat::provider::{Call, Cause, Failure, FinishReason, Piece, Pieces, Provider, Usage, from_env};
use crate::clock;
use crate::error::{Code, Error, Result};
use crate::telemetry::spans;

/// An answer must begin within this time, over all providers, so that there is time for the rest of it.
const LONGEST_BEGINNING: Duration = Duration::from_secs(150);

/// Of them, so long for one try, which leaves some to another provider.
const LONGEST_TRY: Duration = Duration::from_secs(125);

/// How often and for how long a provider is tried.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Tries with one provider.
    pub attempts: u32,
    /// The wait before the second try; each further one doubles it.
    pub backoff: Duration,
    /// A provider that asks for a longer wait is passed over.
    pub longest_wait: Duration,
    /// The wait for a first token, and more for a prompt that takes its time to be read.
    pub first_token: Duration,
    /// The same for a model that thinks first, unless it is known to be at work.
    pub first_token_reasoning: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 3,
            backoff: Duration::from_millis(250),
            longest_wait: Duration::from_secs(3),
            first_token: Duration::from_secs(20),
            first_token_reasoning: Duration::from_secs(120),
        }
    }
}

impl RetryPolicy {
    fn for_first_token(&self, call: &Call) -> Duration {
        let thinking = if call.choice.model.reasoning { self.first_token_reasoning } else { self.first_token };
        (prompt::reading(call.prompt_tokens()) + thinking).min(LONGEST_TRY)
    }
}

/// Until when an answer must have begun.
#[derive(Debug, Clone, Copy)]
struct Deadlines {
    /// By a model of which nothing is heard.
    silent: Instant,
    /// By one that thinks and is at work: the caller's own limit.
    thinking: Instant,
}

/// The providers that are configured.
pub struct Providers {
    list: Vec<(ProviderId, Box<dyn Provider>)>,
    retry: RetryPolicy,
}

/// An answer that has begun: its first token, or its end, is known.
pub struct Begun {
    /// The model that answers.
    pub choice: Choice,
    /// What has arrived.
    pub first: Vec<Piece>,
    /// What will.
    pub rest: Pieces,
    /// From the beginning of the try that succeeded to its first token.
    pub waited: Duration,
    /// Tries, over all providers.
    pub attempts: u32,
    /// The provider that should have answered.
    pub fallback_from: Option<ProviderId>,
}

impl Begun {
    /// One that somebody stopped before its first token. Its prompt was sent, and perhaps thought about.
    #[must_use]
    pub fn stopped(choice: Choice, waited: Duration) -> Self {
        let thinks = choice.model.reasoning.then_some(Piece::Thinking);
        let first = thinks.into_iter().chain([Piece::Finish(FinishReason::Stopped)]).collect();
        Self { choice, first, rest: Box::pin(stream::empty()), waited, attempts: 1, fallback_from: None }
    }
}

/// No provider began an answer: the failure of the one that should have.
#[derive(Debug)]
pub struct NoAnswer {
    /// Why.
    pub failure: Failure,
    /// Tries, over all providers.
    pub attempts: u32,
}

impl Providers {
    /// The providers of this environment.
    ///
    /// # Errors
    /// When the secret cannot be read.
    pub async fn init() -> Result<Self> {
        Ok(Self::new(from_env().await?, RetryPolicy::default()))
    }

    /// These providers.
    #[must_use]
    pub fn new(list: Vec<(ProviderId, Box<dyn Provider>)>, retry: RetryPolicy) -> Self {
        Self { list, retry }
    }

    fn get(&self, id: ProviderId) -> Option<&dyn Provider> {
        self.list.iter().find(|(known, _)| *known == id).map(|(_, provider)| provider.as_ref())
    }

    /// The model that a request names, or the default of the provider that it names, or the default.
    ///
    /// # Errors
    /// 400 `model_not_available` when there is none, or its provider is not configured.
    pub fn choose(&self, provider: Option<ProviderId>, model: Option<&str>) -> Result<Choice> {
        let catalogue = Catalogue::get()?;
        let choice = match (model, provider) {
            (Some(id), _) => catalogue.find(id),
            (None, Some(provider)) => catalogue.default_of(provider),
            (None, None) => ProviderId::ALL
                .into_iter()
                .find(|id| self.get(*id).is_some())
                .and_then(|provider| catalogue.default_of(provider)),
        };
        choice
            .filter(|choice| provider.is_none_or(|provider| provider == choice.model.provider))
            .filter(|choice| self.get(choice.model.provider).is_some())
            .ok_or_else(|| {
                Error::new(Code::ModelNotAvailable, "`GET /api/chat/models` lists the models that are available.")
            })
    }

    /// Gets an answer begun within some time, by the model of the call or, when its provider fails, by the
    /// default model of another one.
    ///
    /// # Errors
    /// When no provider begins an answer.
    pub async fn begin(&self, mut call: Call, time_left: Duration) -> Result<Begun, NoAnswer> {
        let wanted = call.choice.model.provider;
        let (prompt, max_tokens) = (call.prompt_tokens(), call.max_tokens);
        let first_token = self.retry.for_first_token(&call);
        let now = Instant::now();
        let deadlines = Deadlines {
            silent: now + (first_token * 3).min(LONGEST_BEGINNING).min(time_left),
            thinking: now + time_left,
        };
        let mut attempts = 0;
        let mut first_failure = None;
        for choice in self.candidates(&call.choice) {
            let Some(provider) = self.get(choice.model.provider) else { continue };
            call.max_tokens = max_tokens.min(prompt::answer_room(choice.model, prompt));
            call.choice = choice;
            match self.attempt_with_retries(provider, &call, deadlines, &mut attempts).await {
                Ok((first, rest, waited)) => {
                    let answered = call.choice.model.provider;
                    let fallback_from = (answered != wanted).then_some(wanted);
                    return Ok(Begun { choice: call.choice, first, rest, waited, attempts, fallback_from });
                }
                Err(failure) => {
                    tracing::warn!(
                        provider = call.choice.model.provider.as_str(),
                        model = call.choice.model.id,
                        attempts,
                        // An alarm counts it.
                        provider_account_closed = failure.is_our_account().then_some(1),
                        error.cause = %failure,
                        "a provider began no answer"
                    );
                    // A default that its provider does not know is no choice of the client's.
                    let is_retired = matches!(failure.cause, Cause::UnknownModel) && is_default(&call.choice);
                    let final_word = !failure.is_the_providers() && !is_retired;
                    // Another provider's objection to the request would only puzzle who asked this one.
                    let failure = first_failure.get_or_insert(failure);
                    if final_word || Instant::now() >= deadlines.silent {
                        return Err(NoAnswer { failure: failure.clone(), attempts });
                    }
                }
            }
        }
        let failure = first_failure.unwrap_or_else(|| Failure::new(Cause::UnknownModel, "no provider"));
        Err(NoAnswer { failure, attempts })
    }

    /// The whole answer of the call's own model, at the first try, within some time.
    ///
    /// # Errors
    /// The provider's failure.
    pub async fn ask_once(&self, call: &Call, within: Duration) -> Result<(String, Option<Usage>), Failure> {
        let provider = self.get(call.choice.model.provider);
        let provider = provider.ok_or_else(|| Failure::new(Cause::UnknownModel, "no provider"))?;
        let deadline = Instant::now() + within;
        let deadlines = Deadlines { silent: deadline, thinking: deadline };
        let (first, mut rest) = self.attempt(provider, call, deadlines).await?;
        let (mut text, mut usage) = (String::new(), None);
        let mut take = |piece| match piece {
            Piece::Text(more) => text.push_str(&more),
            Piece::Usage(found) => usage = Some(found),
            Piece::Thinking | Piece::Finish(_) => {}
        };
        first.into_iter().for_each(&mut take);
        let read = async {
            while let Some(piece) = rest.next().await {
                take(piece?);
            }
            Ok(())
        };
        match tokio::time::timeout_at(deadline, read).await {
            Ok(outcome) => outcome?,
            Err(_) => return Err(Failure::new(Cause::TimedOut, "the answer took too long")),
        }
        Ok((text, usage))
    }

    /// The wanted model, then the default models of the other providers.
    fn candidates(&self, wanted: &Choice) -> Vec<Choice> {
        let Ok(catalogue) = Catalogue::get() else { return vec![wanted.clone()] };
        let others = ProviderId::ALL.into_iter().filter(|id| *id != wanted.model.provider);
        std::iter::once(wanted.clone()).chain(others.filter_map(|id| catalogue.default_of(id))).collect()
    }

    /// Tries one provider until it begins, has no more tries, or asks for a longer wait than is bearable.
    async fn attempt_with_retries(
        &self,
        provider: &dyn Provider,
        call: &Call,
        deadlines: Deadlines,
        attempts: &mut u32,
    ) -> Result<(Vec<Piece>, Pieces, Duration), Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            *attempts += 1;
            let began = Instant::now();
            let failure = match self.attempt(provider, call, deadlines).await {
                Ok((first, rest)) => return Ok((first, rest, began.elapsed())),
                Err(failure) => failure,
            };
            // A second silence is answer enough, and so is the first where a second would leave no time to others.
            let allowed = match failure.cause {
                Cause::TimedOut if deadlines.silent - Instant::now() < self.retry.for_first_token(call) => 1,
                Cause::TimedOut => self.retry.attempts.min(2),
                _ => self.retry.attempts,
            };
            let wait = failure.retry_after.unwrap_or_else(|| clock::jitter(self.retry.backoff * 2_u32.pow(tries - 1)));
            if !failure.is_passing()
                || tries >= allowed
                || wait > self.retry.longest_wait
                || Instant::now() + wait >= deadlines.silent
            {
                return Err(failure);
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// One try, up to the first token.
    async fn attempt(
        &self,
        provider: &dyn Provider,
        call: &Call,
        deadlines: Deadlines,
    ) -> Result<(Vec<Piece>, Pieces), Failure> {
        let silent = deadlines.silent.min(Instant::now() + self.retry.for_first_token(call));
        let span = debug_span!(
            "chat",
            otel.name = format!("chat {}", call.choice.model.id),
            otel.kind = "client",
            gen_ai.operation.name = "chat",
            gen_ai.provider.name = call.choice.model.provider.conventional_name(),
            gen_ai.request.model = call.choice.model.id,
            gen_ai.request.max_tokens = call.max_tokens,
            gen_ai.request.temperature = call.temperature,
            gen_ai.output.type = "text",
            gen_ai.usage.input_tokens = field::Empty,
            gen_ai.usage.output_tokens = field::Empty,
            gen_ai.response.finish_reasons = field::Empty,
            error.type = field::Empty,
        );
        let begin = async {
            // The span lasts as long as somebody holds the stream.
            let held = span.clone();
            let stream = in_time(silent, provider.start(call)).await??;
            let mut rest: Pieces = Box::pin(stream.inspect(move |piece| match piece {
                Ok(Piece::Usage(usage)) => {
                    held.record("gen_ai.usage.input_tokens", usage.input_tokens);
                    held.record("gen_ai.usage.output_tokens", usage.output_tokens);
                }
                Ok(Piece::Finish(reason)) => {
                    held.record("gen_ai.response.finish_reasons", reason.as_str());
                }
                Ok(Piece::Text(_) | Piece::Thinking) => {}
                Err(failure) => spans::fail(&held, failure.class(true)),
            }));
            let (mut first, mut until) = (Vec::new(), silent);
            while let Some(piece) = in_time(until, rest.next()).await? {
                let piece = piece?;
                let begun = matches!(piece, Piece::Text(_) | Piece::Finish(_));
                if piece == Piece::Thinking {
                    until = deadlines.thinking;
                }
                first.push(piece);
                if begun {
                    return Ok((first, rest));
                }
            }
            Err(Failure::new(Cause::Broken, "the stream was empty"))
        };
        let outcome = begin.await;
        if let Err(failure) = &outcome {
            spans::fail(&span, failure.class(false));
        }
        outcome
    }
}

/// Waits for something until a deadline.
async fn in_time<T>(until: Instant, work: impl Future<Output = T>) -> Result<T, Failure> {
    let outcome = tokio::time::timeout_at(until, work).await;
    outcome.map_err(|_| Failure::new(Cause::TimedOut, "no first token in time"))
}

/// Whether a model is its provider's default.
fn is_default(choice: &Choice) -> bool {
    let default = Catalogue::get().ok().and_then(|catalogue| catalogue.default_of(choice.model.provider));
    default.is_some_and(|default| default.model.id == choice.model.id)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::chat::provider::{Role, Turn};
    use futures_util::future::BoxFuture;

    /// A provider that plays a list of outcomes, then answers.
    struct Scripted(Mutex<Vec<Result<Vec<Piece>, Failure>>>);

    impl Provider for Scripted {
        fn start<'a>(&'a self, _call: &'a Call) -> BoxFuture<'a, Result<Pieces, Failure>> {
            let mut script = self.0.lock().unwrap();
            let next = if script.is_empty() {
                Ok(vec![Piece::Text("Hi".to_owned()), Piece::Finish(FinishReason::Stop)])
            } else {
                script.remove(0)
            };
            Box::pin(async move { Ok(Box::pin(futures_util::stream::iter(next?.into_iter().map(Ok))) as Pieces) })
        }
    }

    /// A provider that never says anything.
    struct Silent;

    impl Provider for Silent {
        fn start<'a>(&'a self, _call: &'a Call) -> BoxFuture<'a, Result<Pieces, Failure>> {
            Box::pin(futures_util::future::pending())
        }
    }

    /// A provider that notes how long an answer may be, and fails.
    struct Noting(Arc<Mutex<Vec<i64>>>);

    impl Provider for Noting {
        fn start<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Result<Pieces, Failure>> {
            self.0.lock().unwrap().push(call.max_tokens);
            Box::pin(async { Err(Failure::new(Cause::Exhausted, "noted")) })
        }
    }

    fn scripted(id: ProviderId, script: Vec<Result<Vec<Piece>, Failure>>) -> (ProviderId, Box<dyn Provider>) {
        (id, Box::new(Scripted(Mutex::new(script))))
    }

    fn fails(cause: Cause) -> Result<Vec<Piece>, Failure> {
        Err(Failure::new(cause, "scripted"))
    }

    fn begin(list: Vec<(ProviderId, Box<dyn Provider>)>) -> Result<Begun, NoAnswer> {
        begin_within(list, "gpt-4", Duration::from_secs(60))
    }

    fn begin_within(
        list: Vec<(ProviderId, Box<dyn Provider>)>,
        model: &str,
        time_left: Duration,
    ) -> Result<Begun, NoAnswer> {
        begin_call(list, call(model), time_left)
    }

    fn call(model: &str) -> Call {
        Call {
            choice: Catalogue::get().unwrap().find(model).unwrap(),
            system: None,
            turns: Vec::new(),
            max_tokens: 10,
            temperature: None,
        }
    }

    fn begin_call(
        list: Vec<(ProviderId, Box<dyn Provider>)>,
        call: Call,
        time_left: Duration,
    ) -> Result<Begun, NoAnswer> {
        let retry = RetryPolicy {
            backoff: Duration::from_millis(1),
            first_token: Duration::from_millis(50),
            first_token_reasoning: Duration::from_millis(100),
            ..RetryPolicy::default()
        };
        let providers = Providers::new(list, retry);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(providers.begin(call, time_left))
    }

    #[test]
    fn tries_again_what_may_pass() {
        let begun = begin(vec![scripted(
            ProviderId::Openai,
            vec![fails(Cause::Broken), Ok(vec![Piece::Usage(Default::default())])],
        )])
        .unwrap_or_else(|refused| panic!("{refused:?}"));
        assert_eq!((begun.attempts, begun.fallback_from, begun.first.len()), (3, None, 1));
    }

    #[test]
    fn falls_back_when_the_provider_stays_broken() {
        let broken = || vec![fails(Cause::Broken), fails(Cause::RateLimited), fails(Cause::Broken)];
        let begun = begin(vec![scripted(ProviderId::Openai, broken()), scripted(ProviderId::Google, vec![])])
            .unwrap_or_else(|refused| panic!("{refused:?}"));
        assert_eq!(begun.choice.model.provider, ProviderId::Google);
        assert_eq!((begun.attempts, begun.fallback_from), (4, Some(ProviderId::Openai)));
    }

    #[test]
    fn each_model_leaves_room_for_the_prompt() {
        let noted = Arc::new(Mutex::new(Vec::new()));
        let list = [ProviderId::Openai, ProviderId::Anthropic].map(|id| (id, Box::new(Noting(noted.clone())) as _));
        let turns = vec![Turn { role: Role::User, content: "word ".repeat(190_000) }];
        let call = Call { turns, max_tokens: 30_000, ..call("gpt-4.1") };
        begin_call(list.into(), call, Duration::from_secs(60)).err().unwrap();
        let mut noted = noted.lock().unwrap().clone();
        noted.dedup();
        assert_eq!(noted, [30_000, 200_000 - 190_000 - 256]);
    }

    #[test]
    fn does_not_repeat_what_cannot_pass() {
        for cause in [Cause::ContextLength, Cause::ContentFiltered, Cause::Rejected, Cause::UnknownModel] {
            let refused =
                begin(vec![scripted(ProviderId::Openai, vec![fails(cause)]), scripted(ProviderId::Google, vec![])])
                    .err()
                    .unwrap();
            assert_eq!((refused.failure.cause, refused.attempts), (cause, 1));
        }
    }

    #[test]
    fn a_long_wait_is_left_to_the_client() {
        let mut failure = Failure::new(Cause::RateLimited, "scripted");
        failure.retry_after = Some(Duration::from_secs(7));
        let refused = begin(vec![scripted(ProviderId::Openai, vec![Err(failure)])]).err().unwrap();
        assert_eq!(refused.attempts, 1);
        let error = Error::from(refused.failure);
        assert_eq!((error.code(), &error.extensions()["retryAfterSeconds"]), (Code::ProviderRateLimited, &7.into()));
    }

    #[test]
    fn silence_is_a_time_out() {
        let refused = begin(vec![(ProviderId::Openai, Box::new(Silent))]).err().unwrap();
        assert_eq!((refused.failure.cause, refused.attempts), (Cause::TimedOut, 2));
    }

    /// A provider that thinks for a while.
    struct Thinker;

    impl Provider for Thinker {
        fn start<'a>(&'a self, _call: &'a Call) -> BoxFuture<'a, Result<Pieces, Failure>> {
            let answer = futures_util::stream::once(async {
                tokio::time::sleep(Duration::from_millis(200)).await;
                Ok(Piece::Text("Hi".to_owned()))
            });
            let pieces = futures_util::stream::iter([Ok(Piece::Thinking)]).chain(answer);
            Box::pin(async { Ok(Box::pin(pieces) as Pieces) })
        }
    }

    #[test]
    fn who_thinks_is_given_time() {
        let begin = |millis| begin_within(vec![(ProviderId::Openai, Box::new(Thinker) as _)], "gpt-5", millis);
        let begun = begin(Duration::from_secs(60)).unwrap_or_else(|refused| panic!("{refused:?}"));
        assert_eq!((begun.attempts, begun.first), (1, vec![Piece::Thinking, Piece::Text("Hi".to_owned())]));
        assert_eq!(begin(Duration::from_millis(150)).err().unwrap().failure.cause, Cause::TimedOut);
    }

    #[test]
    fn a_long_prompt_is_read_in_its_time_and_leaves_some_to_others() {
        let wait = |model: &str, tokens: usize| {
            let turns = vec![Turn { role: Role::User, content: "word ".repeat(tokens) }];
            RetryPolicy::default().for_first_token(&Call { turns, ..call(model) }).as_secs()
        };
        assert_eq!((wait("gpt-4.1", 100), wait("gpt-4.1", 500_000)), (20, 120));
        assert_eq!((wait("gpt-5", 100), wait("gpt-5", 200_000)), (120, LONGEST_TRY.as_secs()));
    }

    #[test]
    fn a_long_silence_leaves_time_to_the_next_provider() {
        let list = vec![(ProviderId::Openai, Box::new(Silent) as _), scripted(ProviderId::Anthropic, vec![])];
        let begun = begin_within(list, "gpt-5", Duration::from_millis(180));
        let begun = begun.unwrap_or_else(|refused| panic!("{refused:?}"));
        assert_eq!((begun.attempts, begun.fallback_from), (2, Some(ProviderId::Openai)));
    }
}
