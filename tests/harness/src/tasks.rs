//! The task API as real client processes call it: typed on this side, bytes on theirs, so that a test can also send
//! what no client library would.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mayfly_proto::ErrorInfo;
use mayfly_proto::task::{AuthorizationDetail, TaskEvent, WatchRequest};
use prost::Message;
use serde_json::{Value, json};

use crate::{Holder, Refusal};

/// How a call of the task API was refused; code 0 means that a stream simply ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TaskRefusal {
    /// gRPC code.
    pub code: i64,
    /// The reason of its `ErrorInfo`.
    pub reason: String,
    /// Its message.
    pub message: String,
}

/// The reason that a program reads in the details of a status.
///
/// # Panics
/// When the details are no `google.rpc.Status`.
pub fn reason(details: &[u8]) -> String {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Rich {
        #[prost(message, repeated, tag = "3")]
        details: Vec<prost_types::Any>,
    }
    let rich = Rich::decode(details).expect("a rich status");
    let info = rich.details.first().map(|any| ErrorInfo::decode(any.value.as_slice()).expect("ErrorInfo"));
    info.map(|info| info.reason).unwrap_or_default()
}

/// The reason that a program reads in a refusal of [`Holder::rpc`].
///
/// # Panics
/// When it was none.
pub fn refused<T: std::fmt::Debug>(answer: Result<T, (Refusal, Vec<u8>)>) -> String {
    let (refusal, details) = answer.expect_err("a refusal");
    let reason = reason(&details);
    if reason.is_empty() { format!("{refusal:?}") } else { reason }
}

/// May do that at one place.
pub fn detail(location: &str, actions: &[&str]) -> AuthorizationDetail {
    AuthorizationDetail {
        r#type: "urn:mayfly:rar:target-access".to_owned(),
        locations: vec![location.to_owned()],
        actions: actions.iter().map(|&action| action.to_owned()).collect(),
        ..Default::default()
    }
}

impl Holder {
    /// Calls a method of the task API.
    ///
    /// # Errors
    /// How it was refused.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn task_call<A: Message + Default>(
        &mut self,
        method: &str,
        request: &impl Message,
    ) -> Result<A, TaskRefusal> {
        self.task_call_raw(method, &request.encode_to_vec())
    }

    /// [`Self::task_call`] with a request that may be anything.
    ///
    /// # Errors
    /// How it was refused.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn task_call_raw<A: Message + Default>(
        &mut self,
        method: &str,
        request: &[u8],
    ) -> Result<A, TaskRefusal> {
        self.order(&json!({"do": "task_call", "method": method, "request": BASE64.encode(request)}));
        self.task_answer()
    }

    /// Calls a method and does not wait: [`Self::task_answer`] has the answers, in the order in which they come.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn task_begin_call(&mut self, method: &str, request: &impl Message) {
        let request = BASE64.encode(request.encode_to_vec());
        self.order(&json!({"do": "task_begin_call", "method": method, "request": request}));
    }

    /// Calls a method and gives up after a while: the answer is `DEADLINE_EXCEEDED` then, from nobody but the caller.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn task_give_up(&mut self, method: &str, request: &impl Message, after: Duration) {
        let (request, after) = (BASE64.encode(request.encode_to_vec()), after.as_millis());
        let after = u64::try_from(after).expect("a short while");
        self.order(
            &json!({"do": "task_begin_call", "method": method, "request": request, "give_up_ms": after}),
        );
    }

    /// Calls a method again and again until it is refused.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn task_loop(&mut self, method: &str, request: &impl Message) {
        let request = BASE64.encode(request.encode_to_vec());
        self.order(&json!({"do": "task_loop", "method": method, "request": request}));
    }

    /// The next answer to a call of the task API.
    ///
    /// # Errors
    /// How it was refused.
    ///
    /// # Panics
    /// When there is none.
    pub fn task_answer<A: Message + Default>(&mut self) -> Result<A, TaskRefusal> {
        let event = self.expect("task_call");
        match event["answer"].as_str() {
            Some(answer) => Ok(A::decode(bytes(answer).as_slice()).expect("the answer")),
            None => Err(refusal(&event)),
        }
    }

    /// Opens the stream of a task.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn task_watch(&mut self, task: &str) {
        let request = WatchRequest { task_id: task.to_owned() };
        let request = BASE64.encode(request.encode_to_vec());
        self.order(&json!({"do": "task_stream", "method": "Watch", "request": request}));
    }

    /// The next message of a stream of a task.
    ///
    /// # Errors
    /// How a stream ended, or that it was refused.
    ///
    /// # Panics
    /// When nothing comes.
    pub fn next_task_event(&mut self) -> Result<TaskEvent, TaskRefusal> {
        let event = self.expect_any(&["task_event", "task_end"]);
        match event["message"].as_str().filter(|_| event["event"] == "task_event") {
            Some(message) => Ok(TaskEvent::decode(bytes(message).as_slice()).expect("an event")),
            None => Err(refusal(&event)),
        }
    }
}

fn bytes(text: &str) -> Vec<u8> {
    BASE64.decode(text).expect("base64")
}

fn refusal(event: &Value) -> TaskRefusal {
    TaskRefusal {
        code: event["code"].as_i64().unwrap_or(-1),
        reason: event["details"].as_str().map(|details| reason(&bytes(details))).unwrap_or_default(),
        message: event["message"].as_str().unwrap_or_default().to_owned(),
    }
}
