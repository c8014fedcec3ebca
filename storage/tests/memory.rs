//! The conformance suite on the engine in memory.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_storage::{Storage, conformance::Fixture, memory::Memory};

struct InMemory(Memory);

#[async_trait]
impl Fixture for InMemory {
    fn store(&self) -> Arc<dyn Storage> {
        Arc::new(self.0.clone())
    }

    async fn restart(&mut self) -> bool {
        false
    }
}

async fn make() -> InMemory {
    InMemory(Memory::new())
}

hawser_storage::conformance!(make(), 200);
