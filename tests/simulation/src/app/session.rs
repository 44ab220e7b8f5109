//! Requests about statements and tables.

use thallus_client::{Client, ClientError};

use super::App;
use super::plan::Question;
use crate::statements::{self, description, objects};

impl App {
    /// Asks a question, whose answer must be the engine's.
    pub(super) async fn ask(&self, client: &Client, question: Question) {
        let trace = &self.shared.trace;
        let name = format!("{} asks {question:?}", self.who);
        let asked = async {
            match &question {
                Question::Describe { sql, number } => {
                    let got = client.describe_with(sql, statements::defaults(*number)).await;
                    got.map(|got| (got == description(sql), "described"))
                }
                Question::Objects(request) => {
                    client.objects(request).await.map(|got| (got == objects(request), "objects listed"))
                }
            }
        };
        match self.within(&name, asked).await {
            None => {}
            Some(Ok((true, what))) => trace.count("statement", what),
            Some(Ok((false, _))) => trace.violation("answers are the engine's", name),
            Some(Err(error)) => self.question_failed(&name, &error),
        }
    }

    fn question_failed(&self, name: &str, error: &ClientError) {
        self.judge(name, error);
        if self.shared.options.fault_free {
            self.shared.trace.violation("fault-free runs go well", format!("{name} failed without a fault: {error}"));
        }
    }
}
